"""A directory that appears whole or not at all, and never over somebody's files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vila_mc.convert.weights import read_json
from vila_mc.errors import CheckpointError
from vila_mc.files import whole_directory, write_json

MANIFEST = "vila_export.json"
"""Lists the files of an export: what may be replaced, and nothing else."""
_WRITTEN = re.compile(
    r"((llm|vision_tower|mm_projector)/)?"
    r"(model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|README\.md|"
    r"((generation_|preprocessor_|processor_|tokenizer_)?config|tokenizer|special_tokens_map|"
    r"added_tokens|vocab|chat_template|vila_export)\.json|merges\.txt|tokenizer\.model|"
    r"adapter_(config\.json|model\.safetensors)|"
    r"chat_template\.jinja|(configuration|connector|modeling|processing|image_processing)_vila\.py)"
)
"""Every file that an export of this version or an earlier one holds. The list in a directory may be
somebody else's, so it is believed about these alone."""


@contextmanager
def output_directory(output: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A directory to fill, which becomes ``output`` at the end and replaces an earlier export.

    Args:
        output: where it goes.
        about: what the manifest says besides the list of files.

    Raises:
        CheckpointError: something that is not an export stands at ``output``.
    """
    _check_replaceable(output)
    with whole_directory(output) as partial:
        yield partial
        write_json(partial / MANIFEST, about | {"files": sorted([*_files(partial), MANIFEST])})


def _files(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _check_replaceable(output: Path) -> None:
    """Refuse to write over anything but an export of ours."""
    if not output.exists() and not output.is_symlink():
        return
    advice = "Choose another directory, or remove it yourself."
    if output.is_symlink() or not output.is_dir():
        raise CheckpointError(f"{output} exists and is not a directory. {advice}")
    present = _files(output)
    if not present:
        return
    if MANIFEST not in present:
        raise CheckpointError(f"{output} holds files that no export wrote. {advice}")
    try:
        listed = read_json(output / MANIFEST).get("files")
    except CheckpointError:
        listed = None
    if not isinstance(listed, list):
        raise CheckpointError(f"{output / MANIFEST} is damaged. {advice}")
    ours = {
        name
        for name in map(str, listed)
        if _WRITTEN.fullmatch(name) and not (output / name).is_symlink()
    }
    if foreign := sorted(present - ours):
        raise CheckpointError(
            f"{output} holds {foreign[0]}, which no export wrote. Move it away, or choose another "
            "directory."
        )

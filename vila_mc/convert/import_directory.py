"""The directory that an import fills: a checkpoint of step 0, a recipe, a tokenizer."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.errors import CheckpointError
from vila_mc.files import partial_path, remove

RECIPE_NAME = "model.yaml"
TOKENIZER_NAME = "tokenizer"
_CHECKPOINT = checkpoint_name(0)
_GROWING = partial_path(Path(_CHECKPOINT)).name
_STEP = re.compile(r"step-\d+")
_NO_FOLD = 1 << 20
"""Characters of a line: a path with spaces stays on one."""


@contextmanager
def import_directory(output: Path) -> Iterator[None]:
    """A directory of an import's own, which is filled where it is.

    Of an import that fails nothing is left; what a killed one has left is removed by the next.

    Args:
        output: where it is to be. It may be there, and empty.

    Raises:
        CheckpointError: it holds something. A checkpoint of a run beside the imported one would be
            the newer of the two, which ``train.load`` and all commands take.
    """
    was_there = output.is_dir()
    if output.exists():
        _clear(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in (TOKENIZER_NAME, RECIPE_NAME, _CHECKPOINT):
            remove(output / name)
        if not was_there and not os.listdir(output):
            output.rmdir()
        raise


def write_recipe(output: Path, recipe: Mapping[str, Any]) -> None:
    """Write the recipe that a run starts from the import with."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=_NO_FOLD)
    (output / RECIPE_NAME).write_text(text, encoding="utf-8")


def _clear(output: Path) -> None:
    """Remove what a killed import has left. Raises CheckpointError: it holds anything else."""
    present = sorted(os.listdir(output))
    others = [name for name in present if name not in (TOKENIZER_NAME, RECIPE_NAME, _GROWING)]
    if _GROWING in present and not others:
        for name in present:
            remove(output / name)
    elif present:
        steps = [name for name in others if _STEP.fullmatch(name)]
        shown = (steps[-1:] or others or present)[0]
        raise CheckpointError(
            f"{output} holds {shown}, and an import needs a new or empty "
            "directory: of several checkpoints in one the newest is read. Choose another.",
            option="output",
        )

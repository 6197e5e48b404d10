"""Whether code that a directory brings along is ours, so that it may run."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from vila_mc.convert.proof.reloaded import ModelFaultError
from vila_mc.convert.weights import read_json

FOLDER = "remote_code"
"""Beside the formats: files that are written as they are."""
_ADAPTER = "adapter_config.json"
_LARGEST_CODE = 1 << 20


def packaged_text(name: str) -> str:
    """Text of a file that is written as it is."""
    folder = resources.files("vila_mc.convert.formats") / FOLDER
    return (folder / name).read_text(encoding="utf-8")


def require_packaged_code(directory: Path) -> None:
    """Refuse a directory from which transformers would run what vila_mc did not write.

    Raises:
        ModelFaultError: a ``.py`` file is not one of ours, or differs from it; a JSON file asks for
            other code, which may lie elsewhere on this machine.
    """
    for path in sorted(directory.rglob("*")):
        if path.is_dir() and path.is_symlink():
            raise ModelFaultError(_say(path, "leads out of the directory"))
        if path.suffix == ".py" and not _is_packaged(path, directory):
            raise ModelFaultError(_say(path, "is not a file of this version of vila_mc"))
        if path.name == _ADAPTER:
            raise ModelFaultError(_say(path, "asks for another model"))
        for asked in _code_asked_for(read_json(path)) if path.suffix == ".json" else ():
            if not _is_ours(asked):
                raise ModelFaultError(_say(path, f"asks for the code {asked}"))


def _say(path: Path, what: str) -> str:
    return (
        f"{path} {what}, and what it does would run here. Export again, or trust the code of this "
        "directory if you know who wrote it."
    )


def _is_packaged(path: Path, directory: Path) -> bool:
    if not path.is_file() or path.stat().st_size > _LARGEST_CODE:
        return False
    ours = resources.files("vila_mc.convert.formats") / FOLDER / path.name
    return path.parent == directory and ours.is_file() and ours.read_bytes() == path.read_bytes()


def _code_asked_for(content: Any) -> Iterator[str]:
    """Every text under ``auto_map``, at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value) if key == "auto_map" else _code_asked_for(value)
    elif isinstance(content, list):
        for value in content:
            yield from _code_asked_for(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield json.dumps(value).strip('"')


def _is_ours(asked: str) -> bool:
    """Whether ``module.Class`` is in a packaged file; ``repository--module.Class`` is elsewhere."""
    module, _, _ = asked.partition(".")
    return (
        module.isidentifier()
        and (resources.files("vila_mc.convert.formats") / FOLDER / f"{module}.py").is_file()
    )

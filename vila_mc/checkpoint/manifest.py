"""What a checkpoint directory says about itself, and which of them are whole.

DIRECTORY/step-00000120/            a whole checkpoint
DIRECTORY/.step-00000120.partial/   being written, or left by a run that died; never read
"""

import dataclasses
import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc import __version__
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything besides the tensors."""

    step: int
    """Optimizer steps done."""
    samples_seen: int
    """Samples of the blend consumed; the whole position of the data side."""
    run: RunConfig
    """The resolved configuration that wrote it."""
    layout: str
    """Layout that wrote it, for people; any layout can read it."""
    versions: dict[str, str]
    """Versions of vila_mc, Python and the packages that wrote it."""

    def write(self, directory: Path) -> None:
        """Write the manifest into a checkpoint directory and flush it to disk."""
        values = {"format_version": FORMAT_VERSION} | {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        values["run"] = run_to_dict(self.run)
        with open(directory / MANIFEST_NAME, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=2)
            file.flush()
            os.fsync(file.fileno())

    def require_same_model(self, run: RunConfig, directory: Path) -> None:
        """Refuse to load ``directory`` into a run of another model. Raises CheckpointError."""
        theirs = _leaves(run_to_dict(self.run)["model"], "model")
        ours = _leaves(run_to_dict(run)["model"], "model")
        differences = [
            f"{name}: checkpoint {theirs[name]}, run {ours[name]}"
            for name in ours
            if theirs[name] != ours[name]
        ]
        if differences:
            raise CheckpointError(
                f"{directory} holds another model: {'; '.join(differences)}. Use the model section "
                "it was trained with, or another checkpoint."
            )

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Read the manifest of a checkpoint. Raises CheckpointError."""
        path = directory / MANIFEST_NAME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format_version")
        except FileNotFoundError:
            raise CheckpointError(
                f"{directory} is not a checkpoint of vila_mc: it has no {MANIFEST_NAME}. Name a "
                "step-* directory, or the directory that holds them."
            ) from None
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}; this version reads {FORMAT_VERSION}. Use the "
                f"vila_mc that wrote it: {values.get('versions', {}).get('vila_mc', 'unknown')}."
            )
        try:
            return Manifest(**{**values, "run": run_from_dict(values["run"])})
        except (ConfigError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged or was edited: {error}") from None


def _leaves(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted names and values below ``prefix``."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}.{name}"
        leaves |= _leaves(value, dotted) if isinstance(value, dict) else {dotted: value}
    return leaves


def versions() -> dict[str, str]:
    """Versions of what this process runs on."""
    from importlib.metadata import version

    packages = ("torch", "megatron-core", "numpy")
    return {"vila_mc": __version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def whole_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints in ``directory``, oldest first."""
    if not directory.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _STEP_NAME.fullmatch(path.name)) and (path / MANIFEST_NAME).is_file()
    ]
    return [path for _, path in sorted(found)]


def resolve_checkpoint(path: Path) -> Path:
    """``path`` itself if it is a checkpoint, else the newest one in it. Raises CheckpointError."""
    if (path / MANIFEST_NAME).is_file():
        return path
    found = whole_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"there is no checkpoint in {path}. Name a step-* directory, or the train.output of "
            "the run that wrote one."
        )
    return found[-1]


def delete_older(directory: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` checkpoints, and what dead runs left half-written."""
    for path in whole_checkpoints(directory)[:-keep_last]:
        # First out of sight, so that a deletion cut short leaves nothing that looks whole.
        doomed = path.with_name(f".{path.name}.partial")
        path.rename(doomed)
    for path in directory.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)

"""What a checkpoint directory says about itself, and which of them are whole.

DIRECTORY/step-00000120/            a whole checkpoint
DIRECTORY/.step-00000120.partial/   being written, or left by a run that died; never read
"""

import dataclasses
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc import __version__
from vila_mc.config.load import run_from_dict, run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS, ModelPart
from vila_mc.data.indexed.dataset_manifest import DatasetManifest, contents_sha256
from vila_mc.errors import CheckpointError, ConfigError
from vila_mc.files import sha256_of, write_json

FORMAT_VERSION = 4
"""Version 3 called the configuration ``run``, and the phase in it a stage."""
MANIFEST_NAME = "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of the checkpoint must be."""

    num_bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> "FileRecord":
        """Describe a file as it is now; reads all of it."""
        return FileRecord(path.stat().st_size, sha256_of(path))


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """What a dataset held when it was read."""

    samples: int
    sha256: str
    """Of its contents, see ``vila_mc.data.indexed.dataset_manifest.contents_sha256``."""

    @staticmethod
    def of(manifest: DatasetManifest) -> "DatasetRecord":
        """Describe a dataset by its own manifest."""
        return DatasetRecord(manifest.samples, contents_sha256(manifest))

    def __str__(self) -> str:
        return f"{self.samples:,} samples, SHA-256 {self.sha256[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything besides the tensors."""

    step: int
    """Optimizer steps done."""
    samples_seen: int
    """Samples of the blend consumed; the whole position of the data side."""
    config: RunConfig
    """The resolved configuration that wrote it."""
    layout: str
    """Layout that wrote it, for people; any layout can read it."""
    versions: dict[str, str]
    """Versions of vila_mc, Python and the packages that wrote it."""
    datasets: tuple[DatasetRecord, ...] = ()
    """What ``config.data.blend`` held, in its order; the position counts in these samples."""
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    """Every other file of the directory; known only once all are written."""

    def write(self, directory: Path) -> None:
        """Write the manifest into a checkpoint directory and flush it to disk."""
        values = {"format_version": FORMAT_VERSION} | {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        values["config"] = run_to_dict(self.config)
        values["datasets"] = [dataclasses.asdict(dataset) for dataset in self.datasets]
        values["files"] = {name: dataclasses.asdict(file) for name, file in self.files.items()}
        write_json(directory / MANIFEST_NAME, values)

    def require_same_model(
        self, config: RunConfig, directory: Path, parts: Sequence[ModelPart] = MODEL_PARTS
    ) -> None:
        """Refuse to load ``parts`` of ``directory`` into a run of another model.

        Raises:
            CheckpointError: it names every option of the model section that differs.
        """
        theirs = leaves(run_to_dict(self.config)["model"], "model")
        ours = leaves(run_to_dict(config)["model"], "model")
        differences = [
            f"{name}: checkpoint {theirs.get(name)}, run {ours.get(name)}"
            for name in ours | theirs
            if theirs.get(name) != ours.get(name) and _concerns(name, parts)
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
        if version not in (3, FORMAT_VERSION):
            raise CheckpointError(
                f"{path} has format {version}; this version reads {FORMAT_VERSION}. Use the "
                f"vila_mc that wrote it: {values.get('versions', {}).get('vila_mc', 'unknown')}."
            )
        try:
            if version == 3:
                values["config"] = values.pop("run")
                values["config"]["train"]["phase"] = values["config"]["train"].pop("stage")
            config = run_from_dict(values["config"])
            files = {name: FileRecord(**record) for name, record in values["files"].items()}
            datasets = tuple(DatasetRecord(**record) for record in values["datasets"])
            return Manifest(**{**values, "config": config, "datasets": datasets, "files": files})
        except (ConfigError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged or was edited: {error}") from None


def leaves(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted names and values below ``prefix``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}.{name}"
        found |= leaves(value, dotted) if isinstance(value, dict) else {dotted: value}
    return found


_SHAPE_THE_CONNECTOR = ("model.vision.width", "model.language.width")


def _concerns(option: str, parts: Sequence[ModelPart]) -> bool:
    """Whether an option of the model section decides what weights of ``parts`` mean."""
    if len(parts) == len(MODEL_PARTS):
        return True
    section = option.split(".")[1]
    return section in parts or ("connector" in parts and option in _SHAPE_THE_CONNECTOR)


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


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint directory."""
    return int(path.name.removeprefix("step-"))

"""What a checkpoint directory says about itself, and which of them are whole.

DIRECTORY/step-00000120/            a whole checkpoint
DIRECTORY/.step-00000120.partial/   being written, or left by a run that died; never read
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vila_mc import __version__
from vila_mc.config.load import run_to_dict
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS, LayerKind, ModelPart
from vila_mc.data.indexed.dataset_manifest import DatasetManifest, contents_sha256
from vila_mc.errors import CheckpointError, ConfigError
from vila_mc.files import sha256_of, write_json
from vila_mc.foreign_files import fault_of, read_foreign, require_few_values
from vila_mc.topology.layout import Layout

FORMAT_VERSION = 4
"""Version 3 called the configuration ``run``, the phase in it a stage, and described the layout in
words for people."""
MANIFEST_NAME = "manifest.json"
_LARGEST_BYTES = 2**26
_STRICT = ConfigDict(extra="forbid", strict=True)
_Count = Annotated[int, Field(ge=0)]
TemplateRecord = str | dict[str, Any]
"""A chat template: its name, or what its ``describe`` says."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of the checkpoint must be."""

    __pydantic_config__ = _STRICT

    num_bytes: _Count
    sha256: str

    @staticmethod
    def of(path: Path) -> "FileRecord":
        """Describe a file as it is now; reads all of it."""
        return FileRecord(path.stat().st_size, sha256_of(path))


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """What a dataset held when it was read."""

    __pydantic_config__ = _STRICT

    samples: _Count
    sha256: str
    """SHA-256 of its contents, see ``vila_mc.data.indexed.dataset_manifest.contents_sha256``."""
    template: TemplateRecord | None = dataclasses.field(default=None, compare=False)
    """Chat template of its conversations. The contents follow from it, so two records are the same
    without."""
    tokenizer_sha256: str | None = dataclasses.field(default=None, compare=False)
    """Fingerprint of its tokenizer; None in checkpoints of earlier versions."""

    @staticmethod
    def of(manifest: DatasetManifest) -> "DatasetRecord":
        """Describe a dataset by its own manifest."""
        template = manifest.source.get("template")
        known = template if isinstance(template, str | dict) else None
        return DatasetRecord(
            manifest.samples, contents_sha256(manifest), known, manifest.tokenizer_sha256
        )

    def __str__(self) -> str:
        return f"{self.samples:,} samples, SHA-256 {self.sha256[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """The checkpoint that the weights beside adapters are in, which are not kept again."""

    __pydantic_config__ = _STRICT

    path: str
    """Its step-* directory."""
    relative: str
    """The same, seen from the directory that names it: where both have moved."""
    fingerprint: str
    """What its own manifest's ``fingerprint`` was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything besides the tensors."""

    __pydantic_config__ = _STRICT

    step: _Count
    """Optimizer steps done."""
    samples_seen: _Count
    """Samples of the blend consumed; the whole position of the data side."""
    blend_since: _Count = 0
    """Position at which the order of ``config.data`` begins, see ``data.blend_may_change``."""
    bad_steps: _Count = 0
    """Steps in a row up to this one that changed nothing, see ``train.max_bad_steps``."""
    config: RunConfig
    """The resolved configuration that wrote it."""
    layout: Layout | None
    """Layout that wrote it; None for one process that only converts. Any layout can read it."""
    versions: dict[str, str]
    """Versions of vila_mc, Python and the packages that wrote it."""
    layers: dict[ModelPart, LayerKind] = dataclasses.field(default_factory=dict)
    """What the layers of each part were made of, which ``train.layers`` may leave to the machine;
    empty where it was not recorded."""
    datasets: tuple[DatasetRecord, ...] = ()
    """What ``config.data.blend`` held, in its order; the position counts in these samples."""
    template: TemplateRecord | None = None
    """Chat template of the weights that training began from, where it is known. Those of
    ``datasets`` come before it."""
    validation_loss: float | None = None
    """On what nothing learns from, at this step; None where it was not measured, or not finite."""
    base: BaseRecord | None = None
    """Where the weights are that this checkpoint does not hold, see ``vila_mc.checkpoint.base``."""
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    """Every other file of the directory; known only once all are written."""

    def __post_init__(self) -> None:
        if outside := [name for name in self.files if Path(name).name != name]:
            raise CheckpointError(f"a manifest names {outside[0]!r}, outside its directory.")

    def written_by(self) -> str:
        """The versions, for people."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def computed_in(self) -> str:
        """A few words about how the weights were computed: number formats and layers."""
        train = self.config.train
        layers = ", ".join(f"{part} {kind}" for part, kind in self.layers.items())
        numbers = f"{train.precision}, {train.fp8.said()}"
        return f"{numbers}; layers: {layers}" if layers else numbers

    def fingerprint(self) -> str:
        """SHA-256 of what the checkpoint holds: names, lengths and checksums of its files."""
        contents = [
            f"{name} {record.num_bytes} {record.sha256}"
            for name, record in sorted(self.files.items())
        ]
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write the manifest into a checkpoint directory and flush it to disk."""
        values = {"format_version": FORMAT_VERSION}
        values |= TypeAdapter(Manifest).dump_python(self, mode="json")
        write_json(directory / MANIFEST_NAME, values)

    def require_same_model(
        self,
        config: RunConfig,
        directory: Path,
        parts: Sequence[ModelPart] = MODEL_PARTS,
        *,
        may_grow: bool = False,
    ) -> None:
        """Refuse to load ``parts`` of ``directory`` into a run of another model.

        With ``may_grow``, which is for ``train.load``, the run may have more tokens, and begin or
        cease to cut images into tiles, or cut them otherwise; with ``train.interpolate_positions``
        it may have images of another size.

        Raises:
            CheckpointError: it names every option of the model section that differs.
        """
        theirs, ours = _model_options(self.config, config)
        if may_grow and theirs[_VOCABULARY] < ours[_VOCABULARY]:
            theirs[_VOCABULARY] = ours[_VOCABULARY]
        if may_grow and "tiles" in (theirs[_IMAGE_MODE], ours[_IMAGE_MODE]):
            theirs |= {name: ours[name] for name in (_IMAGE_MODE, *_OF_TILES)}
        if may_grow and config.train.interpolate_positions:
            theirs[_IMAGE_SIZE] = ours[_IMAGE_SIZE]
        differ = [
            name
            for name in ours | theirs
            if theirs.get(name) != ours.get(name) and _concerns(name, parts)
        ]
        if differ:
            differences = "; ".join(
                f"{name}: checkpoint {theirs.get(name)}, run {ours.get(name)}" for name in differ
            )
            more = _to_keep_its_connector(self.config.model, config.model, differ)
            if _VOCABULARY in differ:
                more += "; a vocabulary grows with train.load alone, and never shrinks"
            elif _IMAGE_SIZE in differ:
                more += "; train.interpolate_positions lets train.load stretch a tower"
            raise CheckpointError(
                f"{directory} holds another model: {differences}. Use the model section it was "
                f"trained with, {_other_parts(differ, parts) if may_grow else ''}or another "
                f"checkpoint{more}."
            )

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Read the manifest of a checkpoint. Raises CheckpointError."""
        path = directory / MANIFEST_NAME
        values = _read_values(path)
        version = values.pop("format_version", None)
        if version not in (3, FORMAT_VERSION):
            raise CheckpointError(
                f"{path} has format {str(version)[:20]}; this version reads 3 and "
                f"{FORMAT_VERSION}. Use the vila_mc that wrote it."
            )
        damaged = f"{path} is damaged or was edited"
        try:
            if version == 3:
                _update_from_3(values)
            return TypeAdapter(Manifest).validate_json(json.dumps(values))
        except (ConfigError, CheckpointError) as error:
            raise CheckpointError(f"{damaged}: {error}") from None
        except ValidationError as error:
            raise CheckpointError(f"{damaged}: {fault_of(error)}.") from None
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{damaged}: {error!r}.") from None


def _read_values(path: Path) -> dict[str, Any]:
    """A JSON object of ours. Raises CheckpointError."""
    try:
        text = read_foreign(path, _LARGEST_BYTES)
        require_few_values(text)
        values = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint of vila_mc: it has no {path.name}. Name a step-* "
            "directory, or the directory that holds them."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Use an older step-* directory."
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no manifest. Use an older step-* directory.")
    return values


def _update_from_3(values: dict[str, Any]) -> None:
    """The words of format 3: ``run``, its ``train.stage``, and the layout as a text for people."""
    config = values["config"] = values.pop("run")
    config["train"]["phase"] = config["train"].pop("stage")
    label = values.pop("layout")
    parallel = config["parallel"]
    values["layout"] = label and {
        "tensor": parallel["tensor"],
        "pipeline": parallel["pipeline"],
        "virtual": parallel["virtual"],
        "data": int(label.rpartition(" ")[2]),
    }
    values["layout"] = values["layout"] or None


def leaves(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted names and values below ``prefix``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}.{name}"
        found |= leaves(value, dotted) if isinstance(value, dict) else {dotted: value}
    return found


def _model_options(theirs: RunConfig, ours: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of two model sections by their dotted names. What only one leaves open is what it
    stands for, so that a model that is spelled out is no other."""
    one, other = (leaves(run_to_dict(each)["model"], "model") for each in (theirs, ours))
    stands_for = theirs.model.defaults(), ours.model.defaults()
    for name in stands_for[0]:
        if one[name] != other[name]:
            one[name], other[name] = (defaults[name] for defaults in stands_for)
    return one, other


def _to_keep_its_connector(theirs: ModelConfig, ours: ModelConfig, differ: Sequence[str]) -> str:
    """How a run behind another tower gets the connector of a checkpoint; empty if that cannot be,
    or is not why they differ."""
    kept = {
        f"model.connector.{name}": getattr(theirs.connector, name)
        for name, default in theirs.connector.facts().options.items()
        if default is None and f"model.connector.{name}" in differ
    }
    if not kept or theirs.connector.kind != ours.connector.kind:
        return ""
    try:
        dataclasses.replace(ours, connector=theirs.connector)
    except ConfigError:
        return ""
    options = " and ".join(f"{name} {value}" for name, value in kept.items())
    return f"; its connector is kept with {options}, as what is not given fits the run's own tower"


_VOCABULARY = "model.language.vocab_size"
_IMAGE_MODE = "model.vision.image_mode"
_OF_TILES = ("model.vision.max_tiles", "model.vision.thumbnail", "model.vision.tile_newline")
_IMAGE_SIZE = "model.vision.image_size"
_SHAPE_THE_CONNECTOR = ("model.vision.width", "model.language.width")


def _concerns(option: str, parts: Sequence[ModelPart]) -> bool:
    """Whether an option of the model section decides what weights of ``parts`` mean."""
    if len(parts) == len(MODEL_PARTS):
        return True
    section = option.split(".")[1]
    return section in parts or ("connector" in parts and option in _SHAPE_THE_CONNECTOR)


def _other_parts(differ: Sequence[str], parts: Sequence[ModelPart]) -> str:
    """How to load the parts that none of these options concerns; empty if all are concerned."""
    same = [part for part in parts if not any(_concerns(name, [part]) for name in differ)]
    if not same:
        return ""
    rest = ", ".join(part for part in parts if part not in same)
    return f"train.load_parts [{', '.join(same)}] to start {rest} from train.seed, "


def versions() -> dict[str, str]:
    """Versions of what this process runs on."""
    from importlib.metadata import version

    packages = ("torch", "megatron-core", "numpy")
    return {"vila_mc": __version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }

"""Adapters in PEFT's own format: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names a factor by the module that it stands beside: ``base_model.model.`` in front of the name
of that module in a model of transformers, ``.lora_A.weight`` or ``.lora_B.weight`` behind it.
What it keeps besides adapters, ``modules_to_save``, stands there under its own name.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.config.lora import ADAPTABLE, AdaptedPart, LoraConfig
from vila_mc.config.model import ModelConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.language import HEAD
from vila_mc.convert.formats.registry import FormatName, find_format
from vila_mc.convert.merge_adapters import adapted_rows
from vila_mc.convert.names import Naming
from vila_mc.convert.peft_targets import Targets
from vila_mc.convert.weights import read_json
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape, model_parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IN_FRONT = "base_model.model."
FORMATS: tuple[FormatName, ...] = ("hf-vila", "llm")
"""Formats whose names in files are those of their modules, so that PEFT finds these."""
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_CONNECTOR = "connector"
"""The module of an hf-vila export that may learn beside adapters."""
_HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
"""Keys that say how adapters began or where they come from."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What an ``adapter_config.json`` says of its adapters."""

    rank: int
    alpha: float
    """As the one that is divided by the rank: rsLoRA divides by the root of it."""
    dropout: float
    targets: Targets
    has_connector: bool
    """Whether the file also holds the connector, which learned."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of an adapter."""

    ours: str
    """Its name in training."""
    theirs: str
    """Its name in PEFT's file."""
    shape: Shape


def require_known_format(format: FormatName) -> None:
    """Refuse a format that adapters are not written for. Raises CheckpointError."""
    if format not in FORMATS:
        raise CheckpointError(
            f"adapters are written for {' and '.join(FORMATS)}, not for {format}. Choose one of "
            "them, or merge the adapters.",
            option="format",
        )


def factors(model: ModelConfig, lora: LoraConfig, format: FormatName) -> Iterator[Factor]:
    """Every factor of the adapters that a format has a place for, layer by layer."""
    naming = find_format(format).naming
    shapes = {each.name: each.shape for each in model_parameters(model, lora)}
    for part in lora.parts():
        if part == "vision" and format == "llm":
            continue
        for _, _, projections in adapted_rows(model, lora, part):
            for projection in projections:
                module = f"{IN_FRONT}{_prefix(naming, part)}{projection.theirs}"
                for ours, end in zip(projection.ours, _FACTORS, strict=True):
                    yield Factor(ours, f"{module}{end}", shapes[ours])


def config_json(
    lora: LoraConfig, format: FormatName, names: Iterable[str], *, has_connector: bool
) -> dict[str, Any]:
    """adapter_config.json.

    Args:
        lora: the adapters.
        format: what they are beside.
        names: of the factors in PEFT's file.
        has_connector: whether the file also holds the connector.
    """
    alpha = lora.resolved_alpha()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if format == "llm" else None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        # A tower has projections of the same names, so they are told by their whole names there.
        "target_modules": list(lora.targets) if format == "llm" else _pattern(names),
        "modules_to_save": [_CONNECTOR] if has_connector else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }


def _pattern(names: Iterable[str]) -> str:
    """A regular expression of the modules, each layer like the first."""
    modules = {_module(name).removeprefix(IN_FRONT) for name in names}
    return "|".join(sorted({re.sub(r"\\\.\d+\\\.", r"\.\\d+\.", re.escape(m)) for m in modules}))


def read_config(directory: Path) -> PeftConfig:
    """What a directory of PEFT says of its adapters.

    Raises:
        CheckpointError: it is missing, or asks for what is not computed here; it names what.
    """
    where = directory / CONFIG
    if not where.exists():
        raise CheckpointError(f"there is no {CONFIG} in {directory}. Give what peft saved.")
    config = ConfigValues(read_json(where), where)
    config.require("peft_type", "LORA")
    config.require("bias", "none", None)
    for key in ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "ensure_weight_tying"):
        config.require(key, False, None)
    for key in ("rank_pattern", "alpha_pattern"):
        config.require(key, {}, None)
    config.require("modules_to_save", None, [], [_CONNECTOR])
    # The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of the base as they begin, so
    # that their adapters belong to another base than the one that is named.
    config.require("init_lora_weights", True, False, None, "gaussian", "eva", "orthogonal")
    for key in ("corda_config", "loftq_config", "lora_ga_config"):
        config.require(key, None, {})
    rank, alpha = config.size("r"), config.number("lora_alpha")
    dropout = config.share("lora_dropout")
    if config.flag("use_rslora"):
        alpha *= math.sqrt(rank)
    targets, saved = Targets.read(config), bool(config.get("modules_to_save"))
    config.refuse_others(_HARMLESS)
    return PeftConfig(rank, alpha, dropout, targets, saved)


def adapted_modules(names: Iterable[str]) -> list[str]:
    """The modules that the tensors of a file are adapters of, each once, in order."""
    factors_of = (name for name in names if name.endswith(_FACTORS))
    return list(dict.fromkeys(_module(name).removeprefix(IN_FRONT) for name in factors_of))


def linear_modules(model: ModelConfig, format: FormatName) -> Iterator[str]:
    """Every linear layer of a model in a format, as PEFT meets it."""
    projections: dict[AdaptedPart, Any] = {
        part: tuple(target for layer in layers for target in layer.targets)
        for part, layers in ADAPTABLE.items()
    }
    every = LoraConfig(
        rank=1, targets=projections["language"], vision_targets=projections["vision"]
    )
    naming = find_format(format).naming
    yield from adapted_modules(factor.theirs for factor in factors(model, every, format))
    yield f"{naming.language}{_module(HEAD.theirs)}"
    if format != "llm":
        for layer in model.connector_layers():
            if not layer.is_norm and not layer.is_table:
                yield f"{naming.connector}{layer.name}"


def lora_of(modules: Iterable[str], config: PeftConfig, format: FormatName) -> LoraConfig:
    """The adapters of a file.

    Args:
        modules: what they are beside.
        config: what is said of them.
        format: of the model that they are beside.

    Raises:
        CheckpointError: there are none, or for a projection that cannot have one.
    """
    naming = find_format(format).naming
    found: dict[AdaptedPart, set[str]] = {"vision": set(), "language": set()}
    for module in modules:
        in_tower = format != "llm" and module.startswith(naming.vision)
        found["vision" if in_tower else "language"].add(module.rpartition(".")[2])
    ordered: dict[AdaptedPart, tuple[Any, ...]] = {}
    for part, targets in found.items():
        known = [target for layer in ADAPTABLE[part] for target in layer.targets]
        if strangers := sorted(targets - set(known)):
            raise CheckpointError(
                f"there are adapters of {', '.join(strangers[:4])} in the {part} part, which has "
                f"{', '.join(known)}. Choose other adapters."
            )
        ordered[part] = tuple(target for target in known if target in targets)
    if not any(ordered.values()):
        raise CheckpointError("there is no adapter among the tensors. Choose other adapters.")
    return LoraConfig(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=ordered["language"],
        vision_targets=ordered["vision"],
    )


def format_of(names: Iterable[str]) -> FormatName:
    """The format that the names of a file are of: with a part of its own for language, or not."""
    language = find_format("hf-vila").naming.language
    vision = find_format("hf-vila").naming.vision
    fronts = (f"{IN_FRONT}{language}", f"{IN_FRONT}{vision}")
    return "hf-vila" if any(name.startswith(fronts) for name in names) else "llm"


def _prefix(naming: Naming, part: AdaptedPart) -> str:
    return naming.vision if part == "vision" else naming.language


def _module(name: str) -> str:
    for end in (*_FACTORS, ".weight"):
        name = name.removesuffix(end)
    return name

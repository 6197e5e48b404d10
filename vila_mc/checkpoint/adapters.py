"""LoRA adapters of a checkpoint: whether a run has the same."""

from collections.abc import Sequence
from pathlib import Path

from vila_mc.config.lora import LoraConfig
from vila_mc.config.train import MODEL_PARTS, ModelPart
from vila_mc.errors import CheckpointError

_HOW_THEY_COMPUTE = ("rank", "alpha", "targets", "vision_targets")
"""Options that decide what adapters are and compute; dropout may change."""


def require_same_adapters(
    theirs: LoraConfig,
    ours: LoraConfig,
    directory: Path,
    parts: Sequence[ModelPart] = MODEL_PARTS,
) -> None:
    """Refuse to load ``parts`` of a checkpoint into a run that would leave out its adapters.

    Args:
        theirs: of the checkpoint.
        ours: of the run; it may have adapters where the checkpoint has none.
        directory: the checkpoint, for the message.
        parts: what is loaded.

    Raises:
        CheckpointError: it names what differs.
    """
    if not set(theirs.parts()) & set(parts):
        return
    before, now = _values(theirs), _values(ours)
    differ = [
        f"lora.{name}: checkpoint {_shown(before[name])}, run {_shown(now[name])}"
        for name in _HOW_THEY_COMPUTE
        if before[name] != now[name]
    ]
    if differ:
        raise CheckpointError(
            f"{directory} holds adapters that this run has not: {'; '.join(differ)}. Set lora as "
            "it was trained with; or merge them into the weights by an export, and import that."
        )


def _values(lora: LoraConfig) -> dict[str, object]:
    return {
        "rank": lora.rank,
        "alpha": None if lora.rank is None else lora.resolved_alpha(),
        "targets": sorted(lora.targets_of("language")),
        "vision_targets": sorted(lora.targets_of("vision")),
    }


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return "none" if value is None else f"{value:g}"

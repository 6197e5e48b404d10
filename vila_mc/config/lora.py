"""LoRA: which projections get an adapter, of which rank, and where these lie in the model."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from vila_mc.config.checks import STRICT, require, require_positive

AdaptedPart = Literal["vision", "language"]
_SCALES = 1e-6, 1e3
"""Least and greatest that what adapters compute is multiplied by. People use up to some tens."""
LanguageTarget = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]
VisionTarget = Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass(frozen=True, slots=True)
class AdaptableLayer:
    """A linear layer of Megatron-Core that holds one projection of Hugging Face or several."""

    name: str
    """Its name in a transformer layer."""
    targets: tuple[str, ...]
    """The projections it holds, by the names that PEFT's ``target_modules`` has."""
    splits_output: bool
    """Whether tensor-parallel ranks share its outputs (column-parallel); else its inputs."""


ADAPTABLE: Mapping[AdaptedPart, tuple[AdaptableLayer, ...]] = {
    "vision": (
        AdaptableLayer("self_attention.linear_proj", ("out_proj",), splits_output=False),
        AdaptableLayer(
            "self_attention.linear_qkv", ("q_proj", "k_proj", "v_proj"), splits_output=True
        ),
        AdaptableLayer("mlp.linear_fc1", ("fc1",), splits_output=True),
        AdaptableLayer("mlp.linear_fc2", ("fc2",), splits_output=False),
    ),
    "language": (
        AdaptableLayer("self_attention.linear_proj", ("o_proj",), splits_output=False),
        AdaptableLayer(
            "self_attention.linear_qkv", ("q_proj", "k_proj", "v_proj"), splits_output=True
        ),
        AdaptableLayer("mlp.linear_fc1", ("gate_proj", "up_proj"), splits_output=True),
        AdaptableLayer("mlp.linear_fc2", ("down_proj",), splits_output=False),
    ),
}
"""Every layer that can have adapters, in the order in which a transformer layer holds them."""


def adapter_names(target: str) -> tuple[str, str]:
    """What the two factors of an adapter are called in the layer that holds them: A, then B."""
    return f"lora_a_{target}", f"lora_b_{target}"


def is_adapter(name: str) -> bool:
    """Whether a weight of a model, by its name or its key in a checkpoint, is one of an adapter."""
    return name.rpartition(".")[2].startswith(("lora_a_", "lora_b_"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): what a projection computes of x gets
    ``alpha / rank * B A x`` added, and only A and B learn."""

    __pydantic_config__ = STRICT

    rank: int | None = None
    """Rank of every adapter; none trains without adapters. The parts that have some are frozen
    otherwise, so leave them out of train.trainable."""
    alpha: float | None = None
    """What adapters compute is multiplied by alpha / rank (default: twice the rank)."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in training; the adapters of one fused layer
    (q, k, v; gate, up) drop the same ones."""
    targets: tuple[LanguageTarget, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Projections of the language model that get an adapter in every layer, as PEFT calls them."""
    vision_targets: tuple[VisionTarget, ...] = ()
    """The same of the vision tower: any of q_proj, k_proj, v_proj, out_proj, fc1, fc2."""

    def __post_init__(self) -> None:
        if self.rank is None:
            self._refuse_options_without_rank()
            return
        require_positive("lora", rank=self.rank, alpha=self.resolved_alpha())
        least, most = _SCALES
        require(
            least <= self.scale() <= most,
            f"lora.alpha is {self.resolved_alpha():g}, so what adapters compute is multiplied by "
            f"lora.alpha / lora.rank = {self.scale():g}; that must be {least:g} to {most:g}. Twice "
            f"the rank is usual: {2 * self.rank}.",
        )
        require(
            0 <= self.dropout < 1,
            f"lora.dropout is {self.dropout}; it must be at least 0 and below 1.",
        )
        require(
            bool(self.targets or self.vision_targets),
            "lora.targets and lora.vision_targets are both empty, so nothing would have an "
            "adapter. Name projections in one of them, or set lora.rank to none.",
        )
        for name, targets in (("targets", self.targets), ("vision_targets", self.vision_targets)):
            require(
                len(set(targets)) == len(targets),
                f"lora.{name} names a projection twice: {', '.join(targets)}.",
            )

    def _refuse_options_without_rank(self) -> None:
        for field in fields(self):
            require(
                getattr(self, field.name) == field.default,
                f"lora.{field.name} is given, but lora.rank is none, so there are no adapters. "
                f"Set lora.rank, or leave lora.{field.name} out.",
            )

    def resolved_alpha(self) -> float:
        """``alpha``, or twice the rank."""
        assert self.rank is not None, "there are no adapters"
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def scale(self) -> float:
        """What the output of an adapter is multiplied by."""
        assert self.rank is not None, "there are no adapters"
        return self.resolved_alpha() / self.rank

    def targets_of(self, part: AdaptedPart) -> tuple[str, ...]:
        """Projections of a part that have adapters; none without a rank."""
        if self.rank is None:
            return ()
        return self.targets if part == "language" else self.vision_targets

    def parts(self) -> tuple[AdaptedPart, ...]:
        """Parts of the model that have adapters."""
        return tuple(part for part in ADAPTABLE if self.targets_of(part))

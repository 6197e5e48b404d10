"""AdamW and its learning-rate schedule (VILA, section 4: cosine, 3 % warm-up, no weight decay)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from vila_mc.config.checks import STRICT, require, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class PartConfig:
    """What one part of the model learns by, where that is not what the others learn by."""

    __pydantic_config__ = STRICT

    lr: float | None = None
    """Greatest learning rate of this part; optimizer.lr if none. Warm-up, decay and
    optimizer.min_lr are scaled with it."""
    weight_decay: float | None = None
    """Decoupled weight decay of this part; optimizer.weight_decay if none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPartConfig(PartConfig):
    """The same for the vision tower, and for each of its layers."""

    __pydantic_config__ = STRICT

    layer_decay: float = 1.0
    """The last layer that runs learns at this part's rate, each below it at this much of the one
    above, and the embedding below the first (arXiv 2106.08254). 1: all alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsConfig:
    """Rates and decays of the parts."""

    __pydantic_config__ = STRICT

    vision: VisionPartConfig = VisionPartConfig()
    """The vision tower."""
    connector: PartConfig = PartConfig()
    """Between the two."""
    language: PartConfig = PartConfig()
    """The language model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then decay."""

    __pydantic_config__ = STRICT

    lr: float = 5e-5
    """Greatest learning rate; the default is that of VILA's pretrain at 7B, small models take
    more."""
    min_lr: float = 0.0
    """Learning rate at the last step."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after warm-up."""
    warmup_fraction: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay; never applied to norms and biases, nor to vision and connector in a
    step without images."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the denominator."""
    clip_grad: float = 1.0
    """Greatest global gradient norm; 0 turns clipping off."""
    parts: PartsConfig = PartsConfig()
    """What vision, connector or language learn by instead, if they learn."""

    def __post_init__(self) -> None:
        require_positive("optimizer", lr=self.lr, epsilon=self.epsilon)
        require(
            0 <= self.min_lr <= self.lr,
            f"optimizer.min_lr is {self.min_lr}; it must lie between 0 and optimizer.lr {self.lr}.",
        )
        require(
            self.decay != "constant" or self.min_lr in (0, self.lr),
            f"optimizer.min_lr is {self.min_lr}, but a constant rate stays at optimizer.lr "
            f"{self.lr}. Leave optimizer.min_lr out, or set optimizer.decay to linear or cosine.",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction is {self.warmup_fraction}; it must be at least 0 and "
            "below 1.",
        )
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(
                0 <= value < 1, f"optimizer.{name} is {value}; it must be at least 0 and below 1."
            )
        require(
            self.clip_grad >= 0 and self.weight_decay >= 0,
            f"optimizer.clip_grad is {self.clip_grad} and optimizer.weight_decay is "
            f"{self.weight_decay}; neither may be negative.",
        )
        for name, part in self._parts().items():
            given = {"lr": part.lr} if part.lr is not None else {}
            require_positive(f"optimizer.parts.{name}", **given)
            require(
                part.weight_decay is None or part.weight_decay >= 0,
                f"optimizer.parts.{name}.weight_decay is {part.weight_decay}; it may not be "
                "negative.",
            )
        decay = self.parts.vision.layer_decay
        require(
            0 < decay <= 1,
            f"optimizer.parts.vision.layer_decay is {decay}; it must be greater than 0 and at most "
            "1.",
        )

    def rate_of(self, piece: str, tower_layers: int) -> float:
        """The greatest learning rate of a piece, see ``config.trainable``.

        Args:
            piece: its name.
            tower_layers: layers of the vision tower that run.
        """
        part, *within = piece.split(".")
        own = self._parts()[part].lr
        rate = self.lr if own is None else own
        if part != "vision":
            return rate
        below_the_last = tower_layers - (1 + int(within[-1]) if within[0] == "layers" else 0)
        return rate * self.parts.vision.layer_decay**below_the_last

    def weight_decay_of(self, piece: str) -> float:
        """The weight decay of a piece, but for norms and biases."""
        own = self._parts()[piece.split(".")[0]].weight_decay
        return self.weight_decay if own is None else own

    def given_of_parts(self) -> Iterator[tuple[str, str]]:
        """Part and option of everything that ``parts`` says."""
        for name, part in self._parts().items():
            for option in fields(part):
                if getattr(part, option.name) != option.default:
                    yield name, option.name

    def _parts(self) -> dict[str, PartConfig]:
        parts = self.parts
        return {"vision": parts.vision, "connector": parts.connector, "language": parts.language}

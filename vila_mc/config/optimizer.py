"""AdamW and its learning-rate schedule (VILA, section 4: cosine, 3 % warm-up, no weight decay)."""

from dataclasses import dataclass
from typing import Literal

from vila_mc.config.checks import STRICT, require, require_positive


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

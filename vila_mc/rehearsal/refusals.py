"""What cannot be rehearsed, said before anything heavy is imported."""

from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError


def refuse_what_cannot_be_rehearsed(config: RunConfig) -> None:
    """Refuse layers whose kernels have no shapes without a GPU. Raises ConfigError."""
    train = config.train
    if train.fp8.recipe != "none":
        raise ConfigError(
            f"train.fp8.recipe is {train.fp8.recipe}, and kernels of Transformer Engine cannot be "
            "rehearsed: they have no shapes without a GPU. Set it to none to rehearse in bf16."
        )
    for name in ("layers", "vision_layers"):
        if getattr(train, name) == "transformer_engine":
            raise ConfigError(
                f"train.{name} is transformer_engine, whose kernels cannot be rehearsed: they have "
                "no shapes without a GPU. Set it to torch to rehearse."
            )

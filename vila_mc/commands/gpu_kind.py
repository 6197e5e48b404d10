"""``--gpu KIND``: what a command that foretells is told of GPUs that are not here."""

from vila_mc.errors import ConfigError
from vila_mc.topology.hardware import GPUS, Gpu

DEFAULT = "h100-80g"
HELP = f"one of {', '.join(GPUS)} (default: {DEFAULT})"


def gpu_named(name: str) -> Gpu:
    """The kind of GPU. Raises ConfigError: there is none of this name."""
    if name not in GPUS:
        raise ConfigError(f"--gpu is {name}; it must be one of {', '.join(GPUS)}.")
    return GPUS[name]

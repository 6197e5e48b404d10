"""``torch`` and ``torch.cuda`` as the modules of Transformer Engine see them."""

import types
from typing import Any

import torch

from vila_mc.emulation.extension.capability import emulated_capability
from vila_mc.torch_on_cpu import CPU, NullStream, TorchOnCpu, do_nothing

_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "linspace",
    "load",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "tensor",
    "zeros",
    "zeros_like",
)
_MULTIPROCESSORS = 132
_MEMORY_BYTES = 80 << 30


class EmulatedCuda(types.ModuleType):
    """``torch.cuda``: there is one GPU, and nothing to wait for."""

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        quiet = ("synchronize", "empty_cache", "set_device")
        streams = ("Stream", "Event", "current_stream", "default_stream", "stream")
        vars(self).update(dict.fromkeys(quiet, do_nothing) | dict.fromkeys(streams, NullStream))
        self.nvtx = types.SimpleNamespace(
            range_push=do_nothing, range_pop=do_nothing, range=NullStream
        )

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> torch.device:
        return CPU

    def is_current_stream_capturing(self) -> bool:
        return False

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return emulated_capability()

    def get_device_properties(self, device: Any = None) -> types.SimpleNamespace:
        major, minor = emulated_capability()
        return types.SimpleNamespace(
            name="emulated",
            major=major,
            minor=minor,
            multi_processor_count=_MULTIPROCESSORS,
            total_memory=_MEMORY_BYTES,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


def emulated_torch() -> TorchOnCpu:
    """``torch`` with its factories on the CPU and an emulated ``torch.cuda``."""
    return TorchOnCpu(_FACTORIES, cuda=EmulatedCuda())

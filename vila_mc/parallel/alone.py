"""A CPU rank that shares matrices, or gradients, with nobody: what it need not do.

Megatron-Core 0.19.2 goes the way of many ranks with groups of one, too: gloo copies all gradients
and all weights onto themselves in every step, and each linear layer passes three functions written
in Python, with its bias added in a pass of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.distributed import param_and_grad_buffer as buffers
from megatron.core.tensor_parallel import layers
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from vila_mc.parallel.megatron_patches import ALONE


@contextmanager
def short_ways_for_one() -> Iterator[None]:
    """While active, groups of one take short ways. Only for a machine without a GPU."""
    with ALONE.applied(
        _Linear(layers.linear_with_grad_accumulation_and_async_allreduce),
        _unless_alone(layers.copy_to_tensor_model_parallel_region),
        _unless_alone(layers.reduce_from_tensor_model_parallel_region),
        _in_place(buffers.dist_all_gather_func),
        _in_place(buffers.dist_reduce_scatter_func),
    ):
        yield


class _Linear:
    """torch's own linear layer where nothing is sent and nothing added elsewhere."""

    warned = False
    """Megatron-Core's function reads it of what stands in its place."""

    def __init__(self, original: Callable[..., Tensor]) -> None:
        self._original = original

    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        grad_output_buffer: list[Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        is_plain = not (gradient_accumulation_fusion or allreduce_dgrad or sequence_parallel)
        if is_plain and grad_output_buffer is None and options["gtp_remat_size"] == 1:
            return F.linear(input, weight, bias)
        return self._original(
            input,
            weight,
            bias,
            gradient_accumulation_fusion,
            allreduce_dgrad,
            sequence_parallel,
            grad_output_buffer,
            **options,
        )


def _unless_alone(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pass_on(tensor: Tensor, group: ProcessGroup) -> Tensor:
        return tensor if group.size() == 1 else original(tensor, group=group)

    return pass_on


def _in_place(original: Callable[..., Any]) -> Callable[..., Any]:
    """A collective whose output is a part of its input or the other way round: of one member, the
    same memory."""

    def call(output: Tensor, input: Tensor, *, group: ProcessGroup, **options: Any) -> Any:
        if group.size() == 1 and output.data_ptr() == input.data_ptr():
            return None
        return original(output, input, group=group, **options)

    return call

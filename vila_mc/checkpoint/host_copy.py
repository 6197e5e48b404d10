"""Copy the distributed optimizer's state to host memory, whole on every data-parallel rank."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vila_mc.parallel.megatron_patches import HOST_COPY

_GATHERED = 2**24
"""Numbers that data-parallel ranks gather at once: 64 MiB of the device's memory. The whole of a
bucket, which is all that the rank trains, would be the greatest thing that a step has beside it."""


class HostCopy:
    """Stands in for ``DistributedOptimizer.get_parameter_state_dp_zero`` of Megatron-Core.

    The original makes four copies in fresh memory at every save, and training waits. This one
    makes one, and keeps its memory from save to save: 12 bytes of host memory for every weight
    that this rank's model-parallel share trains.

    Args:
        part: a DistributedOptimizer; its state keys are param, exp_avg and exp_avg_sq.
    """

    def __init__(self, part: Any) -> None:
        self._part = part
        self._original = part.get_parameter_state_dp_zero
        self._memory: dict[tuple[int, str], Tensor] = {}

    def __call__(self, *, empty_data: bool = False, **options: Any) -> dict[Any, Any]:
        """The state by buffer and dtype: under each key one flat fp32 tensor without padding."""
        if empty_data:  # when loading, which needs the memory once
            described: dict[Any, Any] = self._original(empty_data=True, **options)
            return described
        state: dict[Any, Any] = {"buckets_coalesced": True}
        for index, ranges in enumerate(self._part.gbuf_ranges):
            ((dtype, bucket_ranges),) = ranges.items()
            state[index] = {dtype: self._copy_buffer(index, bucket_ranges)}
        return state

    def _copy_buffer(self, index: int, bucket_ranges: list[Any]) -> dict[str, Any]:
        buffer = self._part.buffers[index]
        size = buffer.numel_unpadded
        keys = ("param", *self._part.optimizer_state_keys)
        copies: dict[str, Any] = {key: self._kept(index, key, size) for key in keys}
        start = 0
        for bucket, ranges in zip(buffer.buckets, bucket_ranges, strict=True):
            end = start + bucket.numel_unpadded
            for key in keys:
                self._copy_bucket(copies[key][start:end], bucket, ranges["param_map"], key)
            start = end
        copies["numel_unpadded"] = size
        return copies

    def _copy_bucket(self, into: Tensor, bucket: Any, param_map: Any, key: str) -> None:
        group, shards = self._part.data_parallel_group, list(self._shards(param_map, key))
        if group.size() == 1:
            for begin, end, values in shards:
                into[begin:end].copy_(values)
            return
        share = bucket.grad_data.numel() // group.size()
        at_once = max(1, _GATHERED // group.size())
        for start in range(0, share, at_once):
            size = min(at_once, share - start)
            mine = _cut(shards, start, size, bucket.grad_data.device)
            all_ranks = torch.empty(group.size() * size, dtype=mine.dtype, device=mine.device)
            dist.all_gather(list(all_ranks.chunk(group.size())), mine, group=group)
            for rank, theirs in enumerate(all_ranks.chunk(group.size())):
                begin = rank * share + start
                end = min(begin + size, into.numel())
                if begin < end:  # the rest is padding
                    into[begin:end].copy_(theirs[: end - begin])

    def _shards(self, param_map: Any, key: str) -> Iterator[tuple[int, int, Tensor]]:
        """Where each parameter's part of ``key`` stands in this rank's share of a bucket."""
        for weight, ranges in param_map.items():
            values = self._part._get_main_param_and_optimizer_states(weight)[key]
            yield ranges["gbuf_local"].start, ranges["gbuf_local"].end, values.detach()

    def _kept(self, index: int, key: str, size: int) -> Tensor:
        if (index, key) not in self._memory:
            self._memory[index, key] = torch.zeros(size, dtype=torch.float32)
        return self._memory[index, key]


def _cut(
    shards: list[tuple[int, int, Tensor]], start: int, size: int, device: torch.device
) -> Tensor:
    """[size] fp32 of a share from ``start`` on; zeros where no parameter stands."""
    piece = torch.zeros(size, dtype=torch.float32, device=device)
    for begin, end, values in shards:
        low, high = max(begin, start), min(end, start + size)
        if low < high:
            piece[low - start : high - start].copy_(values[low - begin : high - begin])
    return piece


def use_host_copy(optimizer: Any) -> None:
    """Make every part of Megatron-Core's optimizer gather its state this way."""
    for part in optimizer.chained_optimizers:
        if part.optimizer is not None and not isinstance(
            part.get_parameter_state_dp_zero, HostCopy
        ):
            HOST_COPY.put_on(part, HostCopy(part))

"""The distributed optimizer's state in host memory: of each rank the part that it writes."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vila_mc.checkpoint.host_memory import HostMemory
from vila_mc.parallel.megatron_patches import HOST_COPY

_GATHERED = 2**24
"""Numbers that data-parallel ranks gather at once: 64 MiB of the device's memory. The whole of a
bucket, which is all that the rank trains, would be the greatest thing that a step has beside it."""

Flat = tuple[int, str]
"""A flat tensor of the state: the index of a buffer of gradients, and param, exp_avg ..."""


@dataclass(slots=True, eq=False)
class _Stretch:
    """What this rank writes of a flat tensor, while it arrives in pieces."""

    item: int
    shape: torch.Size
    start: int
    end: int
    missing: int
    values: Tensor | None = None
    """[end - start] fp32, from the first piece on."""


class HostCopy:
    """Stands in for ``DistributedOptimizer.get_parameter_state_dp_zero`` of Megatron-Core.

    The original brings the whole state of a model-parallel share to the host of every data-parallel
    rank, in several copies. This one describes it by tensors without memory, from which
    Megatron-Core cuts what each rank is to write; ``bring`` then fetches that alone.

    Args:
        part: a DistributedOptimizer; its state keys are param, exp_avg and exp_avg_sq.
        memory: where what is fetched waits to be written.
    """

    def __init__(self, part: Any, memory: HostMemory) -> None:
        self.memory = memory
        self._part = part
        self._original = part.get_parameter_state_dp_zero
        self._flat: dict[int, tuple[Flat, Tensor]] = {}

    def __call__(self, *, empty_data: bool = False, **options: Any) -> dict[Any, Any]:
        """The state by buffer and dtype: under each key one flat fp32 tensor."""
        if empty_data:  # when loading, which needs the memory once
            described: dict[Any, Any] = self._original(empty_data=True, **options)
            return described
        state: dict[Any, Any] = {"buckets_coalesced": True}
        self._flat = {}
        for index, ranges in enumerate(self._part.gbuf_ranges):
            (dtype,) = ranges
            buffer = self._part.buffers[index]
            # With the padding between buckets: Megatron-Core 0.19.2 leaves it out here and counts
            # it where it cuts: it would cut something else of the buckets behind.
            size = buffer.numel
            flat = {key: torch.empty(size, device="meta") for key in self._keys()}
            for key, tensor in flat.items():
                self._flat[_storage(tensor)] = (index, key), tensor
            state[index] = {dtype: {**flat, "numel_unpadded": buffer.numel_unpadded}}
        return state

    def bring(self, tensors: Mapping[int, Tensor]) -> None:
        """Fetch what was cut from this state; every data-parallel rank must call this together.

        Args:
            tensors: by number, others than of this state too. What is whole is put into the memory
                under its number.
        """
        wanted: dict[Flat, list[_Stretch]] = defaultdict(list)
        for item, tensor in tensors.items():
            if _storage(tensor) in self._flat:
                flat, _ = self._flat[_storage(tensor)]
                assert tensor.is_contiguous(), "cut along its first axis"
                start, size = int(tensor.storage_offset()), tensor.numel()
                stretch = _Stretch(item, tensor.shape, start, start + size, size)
                wanted[flat].append(stretch)
        for stretches in wanted.values():
            stretches.sort(key=lambda stretch: stretch.start)
        for index, ranges in enumerate(self._part.gbuf_ranges):
            ((_, bucket_ranges),) = ranges.items()
            buckets = self._part.buffers[index].buckets
            for bucket, of_bucket in zip(buckets, bucket_ranges, strict=True):
                for key in self._keys():
                    here = wanted[index, key]
                    for at, values in self._pieces(bucket, of_bucket["param_map"], key):
                        self._take(here, bucket.offset + at, values)

    def _take(self, wanted: list[_Stretch], begin: int, values: Tensor) -> None:
        """Copy what is wanted of the ``values`` that stand from ``begin`` on in their flat tensor.

        Args:
            wanted: in order; they do not overlap.
        """
        end = begin + values.numel()
        first = bisect_right(wanted, begin, key=lambda stretch: stretch.end)
        for stretch in islice(wanted, first, None):
            low, high = max(stretch.start, begin), min(stretch.end, end)
            if low >= high:
                break
            if stretch.values is None:
                room = self.memory.take(4 * (stretch.end - stretch.start))
                stretch.values = room.view(torch.float32)
            into = stretch.values[low - stretch.start : high - stretch.start]
            into.copy_(values[low - begin : high - begin])
            stretch.missing -= high - low
            if not stretch.missing:
                self.memory.put(stretch.item, stretch.values.view(stretch.shape))
                stretch.values = None

    def _pieces(self, bucket: Any, param_map: Any, key: str) -> Iterator[tuple[int, Tensor]]:
        """Where in a bucket each piece of ``key`` begins, and its values on the device."""
        group, shards = self._part.data_parallel_group, list(self._shards(param_map, key))
        if group.size() == 1:
            yield from ((begin, values) for begin, _, values in shards)
            return
        share = bucket.grad_data.numel() // group.size()
        at_once = max(1, _GATHERED // group.size())
        for start in range(0, share, at_once):
            size = min(at_once, share - start)
            mine = _cut(shards, start, size, bucket.grad_data.device)
            all_ranks = torch.empty(group.size() * size, dtype=mine.dtype, device=mine.device)
            dist.all_gather(list(all_ranks.chunk(group.size())), mine, group=group)
            for rank, theirs in enumerate(all_ranks.chunk(group.size())):
                yield rank * share + start, theirs

    def _shards(self, param_map: Any, key: str) -> Iterator[tuple[int, int, Tensor]]:
        """Where each parameter's part of ``key`` stands in this rank's share of a bucket."""
        for weight, ranges in param_map.items():
            values = self._part._get_main_param_and_optimizer_states(weight)[key]
            yield ranges["gbuf_local"].start, ranges["gbuf_local"].end, values.detach()

    def _keys(self) -> tuple[str, ...]:
        return ("param", *self._part.optimizer_state_keys)


def _storage(tensor: Tensor) -> int:
    """The same number for all tensors that are cut from one."""
    return int(tensor.untyped_storage()._cdata)


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
    """Make every part of Megatron-Core's optimizer describe its state this way."""
    memory = host_memory(optimizer)
    for part in optimizer.chained_optimizers:
        if part.optimizer is not None and not isinstance(
            part.get_parameter_state_dp_zero, HostCopy
        ):
            HOST_COPY.put_on(part, HostCopy(part, memory))


def host_memory(optimizer: Any) -> HostMemory:
    """The memory that the parts of an optimizer share, from save to save; new if there is none."""
    return next((copy.memory for copy in _host_copies(optimizer)), None) or HostMemory()


def bring_to_host(
    optimizer: Any,
    tensors: Mapping[int, Tensor],
    most_bytes: int,
    write: Callable[[int, Tensor], None],
) -> list[tuple[int, Tensor]]:
    """Bring what this rank writes of a state to the host; every rank must call this together.

    Args:
        optimizer: whose state was described last by its ``HostCopy``.
        tensors: what this rank writes, by number: on a GPU, cut from the description, or on the
            host already, where they stay as they are.
        most_bytes: of the host's memory. Where more is to be brought, what came first is written.
        write: writes a tensor of a number; must not raise.

    Returns:
        Number and values of those that were brought and not written, in the order in which they are
        to be. They hold until the next call.
    """
    memory = host_memory(optimizer)
    memory.begin(most_bytes, write)
    for item, tensor in tensors.items():
        if tensor.device.type == "cuda":
            room = memory.take(tensor.numel() * tensor.element_size())
            values = room.view(tensor.dtype).view(tensor.shape)
            memory.put(item, values.copy_(tensor.detach()))
    for copy in _host_copies(optimizer):
        copy.bring(tensors)
    elsewhere = sum(tensor.device.type != "cpu" for tensor in tensors.values())
    assert memory.num_put == elsewhere, "everything was brought"
    return memory.waiting()


def _host_copies(optimizer: Any) -> Iterator[HostCopy]:
    for part in optimizer.chained_optimizers:
        copy = getattr(part, "get_parameter_state_dp_zero", None)
        if isinstance(copy, HostCopy):
            yield copy

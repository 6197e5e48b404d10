"""Tensors that are read only when they are needed, so that a model need not fit in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape

_ITEMS_AHEAD = 3
"""A small tensor, such as a norm's, must not keep a large one behind it from being read."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor on disk: what it is, and how to get it."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Its values; pages of a file where possible, so do not write into them."""

    def num_bytes(self) -> int:
        """Bytes that the values take."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


LazyTensors = Mapping[str, LazyTensor]


def lazily(state: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors in memory, as if they were on disk."""
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in state.items()
    }


class Reading(Mapping[str, Tensor]):
    """Lazy tensors as a state dict: each look-up reads anew, and refuses NaN and infinity."""

    def __init__(self, tensors: LazyTensors, where: str) -> None:
        self._tensors = tensors
        self._where = where

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name].read()
        require_finite(tensor, name, self._where)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def ahead[Item](items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next few made in a thread while one is used.

    Reading and checking a tensor takes about as long as writing it.
    """
    end: Any = object()
    with ThreadPoolExecutor(max_workers=1) as reader:
        following = deque(reader.submit(next, items, end) for _ in range(_ITEMS_AHEAD))
        while (item := following.popleft().result()) is not end:
            following.append(reader.submit(next, items, end))
            yield item


def require_finite(tensor: Tensor, name: str, where: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        CheckpointError: there is a NaN or an infinity in ``tensor``.
    """
    if tensor.numel() and tensor.is_floating_point():
        low, high = torch.aminmax(tensor)
        # A NaN comes out of both; the sum of finite extremes in fp64 is finite.
        if not torch.isfinite(low.double() + high.double()):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity, so the model is broken. Use another "
                "checkpoint."
            )

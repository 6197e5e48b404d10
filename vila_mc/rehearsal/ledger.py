"""Which tensors take memory on one kind of device, what they are, and when that is most."""

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import torch
from torch import Tensor

import vila_mc
from vila_mc.rehearsal.record import Peak, TensorGroup

ROUNDING = 512
"""Bytes: torch's CUDA allocator gives whole multiples."""
_MOST_NAMED = 24
"""Groups of tensors that a peak names."""


@dataclass(slots=True, eq=False)
class Block:
    """The memory of one storage."""

    num_bytes: int
    kind: str
    op: str
    where: str
    shape: tuple[int, ...]
    dtype: str
    born: int
    """On the ledger's clock, which ticks whenever memory is taken or given back."""
    stretch: int
    """Of one kind of work, counted; what does not outlive its stretch is temporary."""
    died: int | None = None


class Ledger:
    """Memory of one kind of device.

    Args:
        device: ``cuda`` or ``cpu``.
        rounding: bytes of which every storage takes a multiple.
    """

    def __init__(self, device: str, rounding: int = ROUNDING) -> None:
        self.device, self._rounding = device, rounding
        self._live: dict[int, Block] = {}
        self._history: list[Block] = []
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._clock = self._peak_clock = 0
        self.bytes_now = self.bytes_at_peak = 0
        self.stretch = 0
        """To be counted up when another kind of work begins."""

    def take(self, tensor: Tensor, kind: str, op: Callable[[], tuple[str, str]]) -> bool:
        """Count the storage of a tensor, if it is a new one.

        Args:
            tensor: on this ledger's device.
            kind: of work that made it.
            op: says of a new storage which operation made it, and where.

        Returns:
            whether it is new.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return False
        size = -(-storage.nbytes() // self._rounding) * self._rounding
        self._clock += 1
        what, where = op()
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        block = Block(size, kind, what, where, shape, dtype, self._clock, self.stretch)
        self._live[key] = block
        self._references[key] = weakref.ref(storage, lambda _: self._give_back(key))
        self._history.append(block)
        self.bytes_now += size
        if self.bytes_now > self.bytes_at_peak:
            self.bytes_at_peak, self._peak_clock = self.bytes_now, self._clock
        return True

    def label(self, tensor: Tensor, kind: str, *, only_from: frozenset[str] | None = None) -> None:
        """Say what the storage of a tensor is, if it is one of this ledger.

        Args:
            tensor: any.
            kind: what it is.
            only_from: kinds that are changed; all if None.
        """
        block = self._live.get(tensor.untyped_storage()._cdata)
        if block is not None and (only_from is None or block.kind in only_from):
            block.kind = kind

    def start(self) -> None:
        """Look for the greatest memory from here on."""
        self._history = list(self._live.values())
        self.bytes_at_peak, self._peak_clock = self.bytes_now, self._clock

    def peak(self) -> Peak:
        """What was there when memory was greatest since ``start``."""
        at = self._peak_clock
        there = [
            block
            for block in self._history
            if block.born <= at and (block.died is None or block.died > at)
        ]
        return _summed(there, self.bytes_at_peak)

    def now(self) -> Peak:
        """The same of this moment."""
        return _summed(list(self._live.values()), self.bytes_now)

    def _give_back(self, key: int) -> None:
        block = self._live.pop(key, None)
        self._references.pop(key, None)
        if block is None:
            return
        self._clock += 1
        block.died = self._clock
        self.bytes_now -= block.num_bytes
        if block.kind == "activations" and block.stretch == self.stretch:
            block.kind = "temporary"


def _summed(blocks: list[Block], total: int) -> Peak:
    kinds: Counter[str] = Counter()
    alike: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        kinds[block.kind] += block.num_bytes
        alike[block.kind, block.op, block.where, block.shape, block.dtype].append(block)
    assert sum(kinds.values()) == total, "what was there adds up to the peak"
    groups = [_group(same) for same in alike.values()]
    largest = sorted(groups, key=lambda group: -group.num_bytes)[:_MOST_NAMED]
    return Peak(num_bytes=total, by_kind=dict(kinds.most_common()), tensors=largest)


def _group(alike: list[Block]) -> TensorGroup:
    """Blocks that differ in nothing but their lives."""
    one = alike[0]
    return TensorGroup(
        kind=one.kind,
        op=one.op,
        where=one.where,
        shape=one.shape,
        dtype=one.dtype,
        count=len(alike),
        num_bytes=sum(block.num_bytes for block in alike),
    )


_HERE = str(Path(__file__).parent)
_OURS = str(Path(vila_mc.__file__).parent.parent) + "/"
_places: dict[CodeType, str | None] = {}


def where_now() -> str:
    """File and line of vila_mc or Megatron-Core that is running; of the innermost, if nested."""
    frame = sys._getframe(1)
    while frame is not None:  # type: ignore[redundant-expr]
        code = frame.f_code
        if code not in _places:
            _places[code] = place_of(code.co_filename)
        if (file := _places[code]) is not None:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


def place_of(filename: str) -> str | None:
    """A file as it is named to a person; None if it is neither ours nor Megatron-Core's."""
    if filename.startswith(_HERE):
        return None
    if "/megatron/core/" in filename:
        return "megatron/core/" + filename.rpartition("/megatron/core/")[2]
    is_ours = filename.startswith(_OURS + "vila_mc/")
    return filename.removeprefix(_OURS) if is_ours else None

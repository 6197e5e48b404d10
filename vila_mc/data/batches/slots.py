"""Shared memory that worker processes fill with microbatches and their parent reads in place.

A slot holds one microbatch and is used again once nothing looks at it. Pages that are never written
take no memory, so slots may be as large as the largest microbatch; those written stay, and writing
them again costs no page faults.
"""

import mmap
import weakref
from collections.abc import Callable

import numpy as np

from vila_mc.errors import SetupError

Empty = Callable[[tuple[int, ...], type], np.ndarray]
"""Makes an array of a shape and type, not filled: ``np.empty``, or one in a slot."""

_ALIGNMENT = 64
_MAP_NORESERVE = 0x4000
"""Promise no memory for pages that may never be written. Python 3.12 does not name it."""


class Slots:
    """Stretches of memory that this process shares with those forked from it afterwards.

    Args:
        count: how many.
        size: bytes of each.
        lendable: slots that may be lent at once; beyond that, what is borrowed is a copy. The
            others are always there to be filled.

    Raises:
        SetupError: the system has not so much memory.
    """

    def __init__(self, count: int, size: int, lendable: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._lendable = lendable
        try:
            self._memory = mmap.mmap(-1, count * self._size, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
        except OSError as error:
            raise SetupError(
                f"no room to read ahead: up to {count} microbatches of {self._size / 2**20:,.0f} "
                f"MiB ({error.strerror}). Lower train.micro_batch or data.workers, or set "
                "data.workers to 0."
            ) from None
        # The one given back last is taken first, so that few are ever written.
        self._free = list(reversed(range(count)))
        self._lent: set[int] = set()

    def has_free(self) -> bool:
        """Whether ``take`` finds a slot."""
        return bool(self._free)

    def take(self) -> int:
        """A slot that nobody uses."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Say that a slot that was taken is no longer used."""
        self._free.append(slot)

    def view(self, slot: int) -> np.ndarray:
        """[bytes] uint8: the slot itself. Whoever looks must know that it is not used again."""
        return np.frombuffer(self._memory, np.uint8, self._size, slot * self._size)

    def lend(self, slot: int, size: int) -> np.ndarray:
        """[size] uint8: what a slot starts with, which stays as it is while anything looks at it.

        The slot is given back when the array and everything made from it without copying have
        gone, tensors and views included. Where ``lendable`` slots are lent already it is given
        back at once, and this is a copy.
        """
        memory = self.view(slot)[:size]
        if len(self._lent) >= self._lendable:
            copy = memory.copy()
            self.give_back(slot)
            return copy
        self._lent.add(slot)
        # What is made from a view holds the array that the view was cut from.
        owner = memory.base
        assert isinstance(owner, np.ndarray)
        weakref.finalize(owner, _return, slot, self._lent, self._free).atexit = False
        return memory


def _return(slot: int, lent: set[int], free: list[int]) -> None:
    lent.discard(slot)
    free.append(slot)


class Placing:
    """Cuts arrays out of a stretch of memory, one after the other."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self.used = 0
        """Bytes handed out so far."""

    def empty(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """``np.empty`` in this memory. Raises ValueError where it has no more room."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        start, self.used = self.used, self.used + placed_bytes(size)
        return self._memory[start : start + size].view(dtype).reshape(shape)


def placed_bytes(size: int) -> int:
    """What an array of ``size`` bytes takes up in a slot."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT

"""Host memory in which tensors wait to be written, within a bound."""

from collections import defaultdict, deque
from collections.abc import Callable

import torch
from torch import Tensor


class HostMemory:
    """Gives memory for tensors, and has the oldest of them written where there is no more.

    It is kept from save to save, as those of one run want the same: fresh memory costs a page fault
    for every 4 KiB while training waits.
    """

    def __init__(self) -> None:
        self.num_put = 0
        """Tensors put since it began."""
        self._most = self._num_bytes = 0
        self._write: Callable[[int, Tensor], None] | None = None
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._waiting: deque[tuple[int, Tensor]] = deque()

    def begin(self, most_bytes: int, write: Callable[[int, Tensor], None]) -> None:
        """Forget what waits, and take at most ``most_bytes`` from here on.

        One tensor more is taken where even a single one is too large.
        """
        while self._waiting:
            self._set_free(self._waiting.popleft()[1])
        self._most, self._write, self.num_put = most_bytes, write, 0

    def take(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, not filled, for a tensor that begins at its beginning."""
        while not self._free[num_bytes]:
            if self._num_bytes + num_bytes <= self._most or not self._make_room():
                self._num_bytes += num_bytes
                return torch.empty(num_bytes, dtype=torch.uint8)
        return self._free[num_bytes].pop()

    def put(self, item: int, values: Tensor) -> None:
        """Have what stands in memory of ``take`` wait under its number."""
        self._waiting.append((item, values))
        self.num_put += 1

    def waiting(self) -> list[tuple[int, Tensor]]:
        """What was not written, from the oldest on."""
        return list(self._waiting)

    def _make_room(self) -> bool:
        """Give up free memory, or else write the oldest tensor; False if there is neither."""
        size = next((size for size, tensors in self._free.items() if tensors), None)
        if size is not None:
            del self._free[size][-1]
            self._num_bytes -= size
        elif self._waiting:
            item, values = self._waiting.popleft()
            assert self._write is not None, "it has begun"
            self._write(item, values)
            self._set_free(values)
        else:
            return False
        return True

    def _set_free(self, values: Tensor) -> None:
        memory = values.flatten().view(torch.uint8)
        self._free[memory.numel()].append(memory)

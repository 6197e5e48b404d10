"""Keys and values of what a model has read, so that the next token reads only itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class KeyValueCache(PackedSeqParams):  # type: ignore[misc]
    """What each row has read, on its way through Megatron-Core to the attention.

    Rows may differ in length: positions count from the beginning of their own row. (Megatron-Core
    0.19.2's static cache wants prompts of one length, its dynamic one kernels of a GPU.)

    A pass brings equally many new positions to every row; those that ``advance`` does not count are
    padding, and the next pass overwrites them.
    """

    capacity: int = 0
    """Positions that each row has room for."""
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """[b] int64: positions of each row that were read."""
    longest: int = 0
    """The largest of them, known without asking the device."""
    wanted: Tensor | None = None
    """[b] int64: the one new position of each row that gets logits; all do if None."""
    _held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of each layer: [b, groups/tp, capacity, d]."""

    @staticmethod
    def of(rows: int, capacity: int, device: torch.device) -> "KeyValueCache":
        """One in which nothing was read."""
        return KeyValueCache(
            qkv_format="sbhd",
            max_seqlen_q=capacity,  # so many rotary angles are made
            max_seqlen_kv=capacity,
            capacity=capacity,
            lengths=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def new_positions(self, count: int) -> Tensor:
        """Where ``count`` new positions stand in their rows: [b, count]."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def append(self, layer: int, key_bgsd: Tensor, value_bgsd: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values of a layer. Returns all up to the longest row's end."""
        rows, groups, count, width = key_bgsd.shape
        if layer not in self._held:
            # Zeros, as what no row has written is weighed with 0, and 0 times anything else may be
            # no number.
            shape = (rows, groups, self.capacity, width)
            self._held[layer] = key_bgsd.new_zeros(shape), value_bgsd.new_zeros(shape)
        where = self.new_positions(count)[:, None, :, None].expand(-1, groups, -1, width)
        keys, values = self._held[layer]
        keys.scatter_(2, where, key_bgsd)
        values.scatter_(2, where, value_bgsd)
        used = self.longest + count
        return keys[:, :, :used], values[:, :, :used]

    def mask(self, count: int) -> Tensor | None:
        """What each of ``count`` new positions sees of ``append``'s: [b, 1, count, used] bool.

        None in the first pass, which is causal without it.
        """
        if not self.longest:
            return None
        seen = torch.arange(self.longest + count, device=self.lengths.device)
        return seen <= self.new_positions(count)[:, None, :, None]

    def advance(self, read: Sequence[int]) -> None:
        """Count the new positions of each row that are no padding."""
        self.lengths = self.lengths + torch.tensor(read, device=self.lengths.device)
        self.longest = int(self.lengths.max())

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may be taken several times. rows: [n] int64."""
        self.lengths = self.lengths[rows]
        self._held = {layer: (k[rows], v[rows]) for layer, (k, v) in self._held.items()}

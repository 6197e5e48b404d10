"""Rules that carry one tensor of the training model to Hugging Face tensors, and back.

A rule is a row of the tables that names.py puts together. Its shapes are written in letters that
the table resolves with the sizes of a model, so that a wrong tensor is refused by name before it is
used. Rules only move numbers, so there and back is equal bit by bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape

Sizes = Mapping[str, int]
"""Letter of a shape -> size, for example ``{"h": 4096, "v": 32000}``."""


class Row(Protocol):
    """One tensor of the training model and the Hugging Face tensors that hold the same numbers."""

    @property
    def ours(self) -> str:
        """Name in the training model; ``{i}`` stands for the layer."""

    def at(self, layer: int) -> Self:
        """The same row for one layer."""

    def under(self, prefix: str) -> Self:
        """The same row, ``prefix`` in front of every Hugging Face name."""

    def our_shape(self, sizes: Sizes) -> Shape:
        """Shape in the training model."""

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Hugging Face names and shapes."""

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        """Training model -> Hugging Face."""

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        """Hugging Face -> training model. Raises CheckpointError: ours has no such layer."""


def shape_of(letters: str, sizes: Sizes) -> Shape:
    """Resolve a shape such as ``"v h"``; a number stands for itself."""
    return tuple(int(word) if word.isdigit() else sizes[word] for word in letters.split())


@dataclass(frozen=True, slots=True)
class _Pair:
    """A row with one tensor on either side."""

    ours: str
    theirs: str

    def at(self, layer: int) -> Self:
        return replace(
            self,
            ours=self.ours.replace("{i}", str(layer)),
            theirs=self.theirs.replace("{i}", str(layer)),
        )

    def under(self, prefix: str) -> Self:
        return replace(self, theirs=prefix + self.theirs)


@dataclass(frozen=True, slots=True)
class Rename(_Pair):
    """The same tensor under another name."""

    shape: str

    def our_shape(self, sizes: Sizes) -> Shape:
        return shape_of(self.shape, sizes)

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        return {self.theirs: shape_of(self.shape, sizes)}

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {self.theirs: ours}

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        return theirs[self.theirs]


def affine(ours: str, theirs: str, weight: str, bias: str) -> tuple[Row, Row]:
    """Rows of a layer with a weight and a bias, given the letters of their shapes."""
    return (
        Rename(f"{ours}.weight", f"{theirs}.weight", weight),
        Rename(f"{ours}.bias", f"{theirs}.bias", bias),
    )


@dataclass(frozen=True, slots=True)
class Reshape(_Pair):
    """The same numbers in another shape."""

    our_letters: str
    their_letters: str

    def our_shape(self, sizes: Sizes) -> Shape:
        return shape_of(self.our_letters, sizes)

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        return {self.theirs: shape_of(self.their_letters, sizes)}

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {self.theirs: ours.reshape(shape_of(self.their_letters, sizes))}

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        return theirs[self.theirs].reshape(self.our_shape(sizes))


@dataclass(frozen=True, slots=True)
class PadVocab(_Pair):
    """A vocabulary table: both sides may end in rows that no token of ours uses.

    Letters: ``v`` rows that mean something, ``padded`` rows in ours, ``placed`` rows in Hugging
    Face (more than ``v`` where an image placeholder needs a row), h columns. The rest is dropped
    and comes back as zeros.
    """

    def our_shape(self, sizes: Sizes) -> Shape:
        return shape_of("padded h", sizes)

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        return {self.theirs: shape_of("placed h", sizes)}

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {self.theirs: _with_rows(ours[: sizes["v"]], sizes["placed"])}

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        return _with_rows(theirs[self.theirs][: sizes["v"]], sizes["padded"])


def _with_rows(table: Tensor, rows: int) -> Tensor:
    """``table`` with zeros below it up to ``rows`` rows."""
    missing = rows - table.shape[0]
    return torch.cat([table, table.new_zeros(missing, table.shape[1])]) if missing else table


@dataclass(frozen=True, slots=True)
class BeforeIdentity(_Pair):
    """The same tensor, where Hugging Face has a second layer that must change nothing.

    LlavaForConditionalGeneration always has two layers; with the identity as its second and no
    activation between them it computes what one layer does. ``second`` is the tensor of that layer:
    the identity for a weight ``h h``, zeros for a bias ``h``.
    """

    shape: str
    second: str

    def under(self, prefix: str) -> Self:
        return replace(self, theirs=prefix + self.theirs, second=prefix + self.second)

    def our_shape(self, sizes: Sizes) -> Shape:
        return shape_of(self.shape, sizes)

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        rank = len(shape_of(self.shape, sizes))
        return {
            self.theirs: shape_of(self.shape, sizes),
            self.second: (sizes["h"],) * rank,
        }

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return {self.theirs: ours, self.second: self._neutral(ours)}

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        first, second = theirs[self.theirs], theirs[self.second]
        if not torch.equal(second, self._neutral(second)):
            raise CheckpointError(
                f"{self.second} is not the identity, so this is not a linear connector but two "
                "layers without an activation between. Choose another checkpoint."
            )
        return first

    def _neutral(self, like: Tensor) -> Tensor:
        width = like.shape[0]
        return like.new_zeros(width) if like.dim() == 1 else torch.eye(width, dtype=like.dtype)


@dataclass(frozen=True, slots=True)
class MergeQkv(_Pair):
    """Query, key and value projections, merged per key/value group.

    Letters: ``groups`` key/value heads, ``qd`` rows of the query projection, ``kd`` rows of the
    key and of the value projection. Ours is, group by group: the group's query heads, its key
    head, its value head. ``{part}`` in ``theirs`` stands for q, k and v.
    """

    tail: str
    """Letters after the first dimension: the input width of a weight, empty for a bias."""

    def our_shape(self, sizes: Sizes) -> Shape:
        return (sizes["qd"] + 2 * sizes["kd"], *shape_of(self.tail, sizes))

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        tail = shape_of(self.tail, sizes)
        rows = {"q": sizes["qd"], "k": sizes["kd"], "v": sizes["kd"]}
        return {name: (rows[part], *tail) for part, name in self._names().items()}

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        groups = sizes["groups"]
        q_rows, k_rows = sizes["qd"] // groups, sizes["kd"] // groups
        by_group = ours.reshape(groups, q_rows + 2 * k_rows, *ours.shape[1:])
        parts = torch.split(by_group, [q_rows, k_rows, k_rows], dim=1)  # type: ignore[no-untyped-call]
        return {
            name: part.flatten(0, 1)
            for name, part in zip(self._names().values(), parts, strict=True)
        }

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        groups, tail = sizes["groups"], shape_of(self.tail, sizes)
        parts = [theirs[name].reshape(groups, -1, *tail) for name in self._names().values()]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _names(self) -> dict[str, str]:
        return {part: self.theirs.replace("{part}", part) for part in "qkv"}


@dataclass(frozen=True, slots=True)
class MergeGateUp(_Pair):
    """The gate and up projections of a gated feed-forward layer, one above the other.

    ``{part}`` in ``theirs`` stands for gate and up, each [f, h]; ours is [2f, h].
    """

    def our_shape(self, sizes: Sizes) -> Shape:
        return (2 * sizes["f"], sizes["h"])

    def their_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        return {name: shape_of("f h", sizes) for name in self._names()}

    def split(self, ours: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        return dict(zip(self._names(), ours.chunk(2), strict=True))

    def join(self, theirs: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        return torch.cat([theirs[name] for name in self._names()])

    def _names(self) -> tuple[str, str]:
        return self.theirs.replace("{part}", "gate"), self.theirs.replace("{part}", "up")

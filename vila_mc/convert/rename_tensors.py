"""Whole models between training names and Hugging Face names, one tensor at a time."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors, Reading, ahead
from vila_mc.convert.families.language import WORD_EMBEDDINGS
from vila_mc.convert.names import Table
from vila_mc.errors import CheckpointError
from vila_mc.topology.shapes import Shape

_NAMES_SHOWN = 4


def to_hf(source: LazyTensors, parts: Sequence[Table]) -> Iterator[tuple[str, Tensor]]:
    """Rename and re-lay training tensors, row by row.

    Args:
        source: every parameter of these parts, and no other.
        parts: their tables.

    Yields:
        Hugging Face names and tensors, in the order of ``Table.their_shapes``; views of what was
        read where possible.

    Raises:
        CheckpointError: names are missing or surplus, or a tensor has the wrong shape or no
            numbers in it.
    """
    check_tensors(source, our_shapes(parts), "the training state")
    state = Reading(source, "the training state")
    rows = (row.split(state[row.ours], table.sizes) for table in parts for row in table.rows)
    for tensors in ahead(rows):
        yield from tensors.items()


def from_hf(source: LazyTensors, parts: Sequence[Table], where: str) -> dict[str, LazyTensor]:
    """The inverse of ``to_hf``, bit for bit; tensors are joined when they are read.

    Args:
        source: every Hugging Face tensor of these parts, and no other.
        parts: their tables.
        where: what to call the source in messages.

    Raises:
        CheckpointError: names are missing or surplus, or a tensor has the wrong shape or holds
            whole numbers; when it is read, there are no numbers in it.
    """
    check_tensors(source, their_shapes(parts), where)
    state = Reading(source, where)
    result: dict[str, LazyTensor] = {}
    for table in parts:
        for row in table.rows:
            first = next(iter(row.their_shapes(table.sizes)))
            result[row.ours] = LazyTensor(
                row.our_shape(table.sizes),
                source[first].dtype,
                lambda row=row, table=table: row.join(state, table.sizes),  # type: ignore[misc]
            )
    return result


def our_shapes(parts: Sequence[Table]) -> dict[str, Shape]:
    """Every training parameter of several parts, with its shape."""
    return {name: shape for part in parts for name, shape in part.our_shapes().items()}


def their_shapes(parts: Sequence[Table]) -> dict[str, Shape]:
    """Every Hugging Face tensor of several parts, with its shape."""
    return {name: shape for part in parts for name, shape in part.their_shapes().items()}


def vocabulary_rows(source: LazyTensors) -> int | None:
    """Rows of the vocabulary tables of a training state; None if it has none."""
    embeddings = source.get(WORD_EMBEDDINGS)
    return None if embeddings is None else embeddings.shape[0]


def check_tensors(given: LazyTensors, expected: dict[str, Shape], what: str) -> None:
    """Refuse a state dict whose names or shapes are not those of the model.

    Args:
        given: the state dict.
        expected: every name it must have, with its shape.
        what: how to call the state dict in the message.

    Raises:
        CheckpointError: lists what is missing, surplus, mis-shaped and of whole numbers.
    """
    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected]
    misshaped = [
        f"{name} {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    whole = [
        f"{name} {given[name].dtype}"
        for name in expected
        if name in given and not given[name].dtype.is_floating_point
    ]
    kinds = {"missing": missing, "surplus": surplus, "mis-shaped": misshaped}
    kinds["of whole numbers"] = whole  # quantised, or no weights at all
    faults = [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise CheckpointError(
            f"{what} does not fit the model: {'; '.join(faults)}. Use the model section (or "
            "config.json) that the weights were made with."
        )


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ..."

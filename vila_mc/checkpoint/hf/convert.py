"""State dicts of whole models: training names <-> Hugging Face names."""

from collections.abc import Mapping

from torch import Tensor

from vila_mc.checkpoint.hf.names import WORD_EMBEDDINGS, tables
from vila_mc.checkpoint.hf.transforms import Shape
from vila_mc.config.model import ModelConfig
from vila_mc.errors import CheckpointError

_NAMES_SHOWN = 4


def to_hf(canonical: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Rename and re-lay a whole training state dict for the exported model.

    Args:
        canonical: every parameter of a whole ``VilaModel``. Vocabulary tables may be padded.
        model: the shape of the model.

    Returns:
        Hugging Face names and tensors, views of the given ones where possible.

    Raises:
        CheckpointError: names are missing or surplus, or a tensor has the wrong shape.
    """
    embeddings = canonical.get(WORD_EMBEDDINGS)
    parts = tables(model, None if embeddings is None else embeddings.shape[0])
    expected = {name: shape for part in parts for name, shape in part.our_shapes().items()}
    check_tensors(canonical, expected, "the training state")
    return {name: tensor for part in parts for name, tensor in part.to_hf(canonical).items()}


def from_hf(
    hf: Mapping[str, Tensor], model: ModelConfig, padded_vocab_size: int | None = None
) -> dict[str, Tensor]:
    """The inverse of ``to_hf``, bit for bit.

    Args:
        hf: every tensor of an exported model.
        model: the shape of the model.
        padded_vocab_size: rows of the vocabulary tables to make; added rows are zero.
            ``model.language.vocab_size`` if None.

    Raises:
        CheckpointError: names are missing or surplus, or a tensor has the wrong shape.
    """
    parts = tables(model, padded_vocab_size)
    expected = {name: shape for part in parts for name, shape in part.their_shapes().items()}
    check_tensors(hf, expected, "the Hugging Face state")
    return {name: tensor for part in parts for name, tensor in part.from_hf(hf).items()}


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Shape], what: str) -> None:
    """Refuse a state dict whose names or shapes are not those of the model.

    Args:
        given: the state dict.
        expected: every name it must have, with its shape.
        what: how to call the state dict in the message.

    Raises:
        CheckpointError: lists what is missing, surplus and mis-shaped.
    """
    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected]
    misshaped = [
        f"{name} {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    faults = [
        f"{len(names)} {kind} ({_shorten(names)})"
        for kind, names in (("missing", missing), ("surplus", surplus), ("mis-shaped", misshaped))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{what} does not fit the model: {'; '.join(faults)}. Use the model section that the "
            "checkpoint was made with."
        )


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, ..."

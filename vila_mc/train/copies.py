"""Which weights of a run have copies on other ranks, as ``parallel.replicas`` compares them."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from vila_mc.model.freeze import weights_by_name
from vila_mc.model.primary_weights import is_primary
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.replicas import Held, Replicas

_EMBEDDING = "language.embedding.word_embeddings.weight"


def replicas_of(stages: Sequence[VilaModel], ranks: Ranks) -> Replicas:
    """Every rank must call this together."""
    return Replicas({each.name: each.is_split for each in held_weights(stages)}, ranks)


def held_weights(stages: Sequence[VilaModel]) -> Iterator[Held]:
    """Every weight of this rank, frozen ones and adapters too, as the step computes with it.

    The last stage's copy of a tied embedding is called as what it is a copy of. A weight that is
    kept in FP8 is taken for what it stands for, in bf16.
    """
    for stage in stages:
        for name, weight in weights_by_name(stage):
            is_copy = getattr(weight, "shared", False)
            yield Held(
                _EMBEDDING if is_copy else name,
                _as_computed(weight),
                is_split=getattr(weight, "tensor_model_parallel", False),
            )


def _as_computed(weight: Tensor) -> Tensor:
    if not is_primary(weight):
        return weight
    dequantized: Tensor = weight.dequantize()
    return dequantized

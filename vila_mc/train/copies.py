"""Copies of weights on several ranks: which there are, and whether they are still equal."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from vila_mc.config.run import RunConfig
from vila_mc.model.freeze import weights_by_name
from vila_mc.model.primary_weights import is_primary
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.replicas import Held, Replicas

_EMBEDDING = "language.embedding.word_embeddings.weight"


class Copies:
    """The comparison that train.check_replicas_every asks for. Every rank makes it together.

    Args:
        config: the whole configuration.
        stages: this rank's stages.
        ranks: this rank and its groups.
    """

    def __init__(self, config: RunConfig, stages: Sequence[VilaModel], ranks: Ranks) -> None:
        self._stages = stages
        self._every = config.train.check_replicas_every
        self._replicas: Replicas | None = None
        if self._every is not None:
            is_split = {each.name: each.is_split for each in held_weights(stages)}
            self._replicas = Replicas(is_split, ranks)

    def require_equal_in(self, step: int) -> None:
        """The same as ``require_equal``, if it is this step's turn."""
        if self._every is not None and step % self._every == 0:
            self.require_equal(f"in step {step}")

    def require_equal(self, when: str) -> None:
        """Compare what ranks hold copies of, if that is asked for; every rank together.

        Args:
            when: what a person calls the moment.

        Raises:
            TrainingError: on every rank; it names weights and ranks that differ.
        """
        if self._replicas is not None:
            self._replicas.require_equal(list(held_weights(self._stages)), when)


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

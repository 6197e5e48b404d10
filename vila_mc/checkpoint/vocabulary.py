"""Vocabulary tables that grow while they are loaded: new tokens begin as the mean of the others.

A mean is no stranger to the layers, as a random row would be, and its logit is the mean of the
others, so that greedy answers stay what they were.
"""

from collections.abc import Mapping, Sequence

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.run import RunConfig
from vila_mc.config.train import ModelPart

TABLES = ("language.embedding.word_embeddings.weight", "language.output_layer.weight")
"""Keys in a checkpoint; the second is missing where the first is also the output layer."""
_ROWS_AT_ONCE = 4096
"""So that a table is not held a second time in fp64."""


def vocabulary_grows(manifest: Manifest, config: RunConfig, parts: Sequence[ModelPart]) -> bool:
    """Whether a run that loads ``parts`` of a checkpoint has more tokens than it."""
    theirs, ours = manifest.config.model.language, config.model.language
    return "language" in parts and theirs.vocab_size < ours.vocab_size


def growth_line(manifest: Manifest, config: RunConfig, parts: Sequence[ModelPart]) -> str:
    """What to say of a vocabulary that grows; empty if it does not."""
    if not vocabulary_grows(manifest, config, parts):
        return ""
    theirs, ours = manifest.config.model.language, config.model.language
    return growth(theirs.vocab_size, ours.vocab_size)


def growth(before: int, after: int) -> str:
    """That a vocabulary has more tokens than before."""
    return (
        f"the vocabulary grows from {before:,} to {after:,} tokens: new rows are the mean of the "
        "others"
    )


def grown_shards(
    tensors: Mapping[str, LazyTensor], num_real: int, wanted: Mapping[str, ShardedTensor]
) -> dict[str, Tensor]:
    """This rank's shards of the tables, which are read whole, one at a time.

    Args:
        tensors: the checkpoint's parameters.
        num_real: rows of its tables that are tokens; the others are padding, and not kept.
        wanted: tables of a stage by their name there, the embedding's copy of a last stage too.

    Returns:
        [v/tp, h] each, padding rows like new ones.

    Raises:
        CheckpointError: bytes are not those that were written.
    """
    return {
        name: _grown_shard(tensors[shard.key].read()[:num_real], shard)
        for name, shard in wanted.items()
    }


def mean_row(real_vh: Tensor) -> Tensor:
    """What a new token begins as: [h] fp64."""
    total_h = torch.zeros(real_vh.size(1), dtype=torch.float64)
    for start in range(0, len(real_vh), _ROWS_AT_ONCE):
        total_h += real_vh[start : start + _ROWS_AT_ONCE].double().sum(0)
    return total_h / len(real_vh)


def _grown_shard(real_vh: Tensor, shard: ShardedTensor) -> Tensor:
    # The same on every rank to the last bit, which a sum over ranks would not promise.
    mean_h = mean_row(real_vh).to(shard.dtype)
    num_rows, first = shard.local_shape[0], shard.global_offset[0]
    kept = real_vh[first : first + num_rows]
    grown = mean_h.repeat(num_rows, 1)
    grown[: len(kept)] = kept
    return grown

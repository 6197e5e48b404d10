"""The embedding with its visual tokens, split along the sequence, equals the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from tests.parity.layout_trace import write_seed_checkpoint
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed


def _embed_and_gradients(
    seed_checkpoint: Path, parallel: dict[str, Any]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Of every sample: the spliced embeddings [s, b, h]; and the connector's gradient."""
    config = tiny_run(parallel=parallel)
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        (stage,) = build_stages(config, ranks)
        load_weights(seed_checkpoint, [stage])
        wholes = []
        for batch in tiny_microbatches(config, 0, 1):
            shard = stage._embed(batch)  # [s/tp, b, h]
            whole = shard
            if config.parallel.sequence:
                assert shard.shape[0] == config.data.sequence_length // config.parallel.tensor
                # What keeps the shard for the backward pass keeps no more than the shard.
                assert shard.untyped_storage().nbytes() == shard.nbytes
                whole = tensor_parallel.gather_from_sequence_parallel_region(
                    shard, tensor_parallel_output_grad=False, group=ranks.groups.tp
                )
            (whole * _weights(whole)).sum().backward()
            wholes.append(whole.detach().numpy())
        return wholes, stage.connector.fc1.weight.grad.numpy()


def _weights(embedded: torch.Tensor) -> torch.Tensor:
    """Every position counts differently, so that a swap of two shards would show."""
    generator = torch.Generator().manual_seed(8)
    return torch.rand(embedded.shape, generator=generator)


def test_sequence_parallel_splice_equals_the_whole(tmp_path: Path) -> None:
    run_ranks(1, write_seed_checkpoint, tmp_path)
    ((expected, gradient),) = run_ranks(1, _embed_and_gradients, tmp_path, {})
    assert abs(gradient).max() > 0
    for parallel in (dict(tensor=2), dict(tensor=2, sequence=True)):
        for wholes, whole_gradient in run_ranks(2, _embed_and_gradients, tmp_path, parallel):
            for whole, right in zip(wholes, expected, strict=True):
                assert abs(whole - right).max() < 1e-5
            assert abs(whole_gradient - gradient).max() < 1e-4 * abs(gradient).max()

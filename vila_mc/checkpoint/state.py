"""What a checkpoint holds of a run, as megatron.core.dist_checkpointing wants it described."""

import gc
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from vila_mc.checkpoint.fp8_state import FP8, fp8_state
from vila_mc.checkpoint.host_copy import use_host_copy
from vila_mc.checkpoint.learning_layers import with_learning_layers_alone
from vila_mc.checkpoint.places import is_empty_object, key_of
from vila_mc.model.primary_weights import in_high_precision, is_primary
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks

RANDOM = "random"
"""Key of the random generators' states, one for each rank."""


def run_state(
    ranks: Ranks, stages: Sequence[VilaModel], optimizer: Any, *, is_loading: bool
) -> dict[str, Any]:
    """Weights, optimizer and what FP8 remembers, which any layout can read."""
    metadata = {**content_metadata(), "dp_cp_group": ranks.groups.dp_cp}
    if not is_loading:
        high = in_high_precision(optimizer)
    described = {name: stage.sharded_state_dict(metadata=metadata) for name, stage in named(stages)}
    fp8 = {name: fp8_state(stage, described[name]) for name, stage in named(stages)}
    weights = {name: _weights(described[name]) for name in described}
    learning = with_learning_layers_alone(stages, list(weights.values()), ranks)
    if not is_loading:
        _create_missing_moments(optimizer)
        _count_steps_alike(optimizer, ranks)
        use_host_copy(optimizer)
    state: dict[str, Any] = dict(weights)
    if any(fp8.values()):
        state[FP8] = fp8
    # Megatron-Core collects garbage here, for a fifth of a second with this many objects about:
    # those that exist already are left out.
    gc.freeze()
    try:
        state["optimizer"] = optimizer.sharded_state_dict(
            dict(zip(weights, learning, strict=True)), is_loading=is_loading, metadata=metadata
        )
    finally:
        gc.unfreeze()
    for stage_weights in weights.values():  # last, for the optimizer knows weights by identity
        for entry in stage_weights.values():
            if isinstance(entry.data, Tensor) and is_primary(entry.data):
                weight = entry.data
                entry.data = _room(weight) if is_loading else high[id(weight)]
    return state


def _room(weight: Tensor) -> Tensor:
    """For what a weight that is kept in FP8 is read as."""
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def weights_state(stages: Sequence[VilaModel]) -> dict[str, Any]:
    """The weights alone."""
    metadata = content_metadata()
    return {
        name: _weights(stage.sharded_state_dict(metadata=metadata)) for name, stage in named(stages)
    }


def put_weights(stage: VilaModel, weights: Mapping[str, Any], *, is_whole: bool = True) -> None:
    """Take what was loaded; with ``is_whole`` that is every weight of the stage."""
    missing, unknown = stage.load_state_dict(weights, strict=False)
    forgotten = [name for name in missing if not name.endswith("_extra_state")]
    assert not unknown, unknown
    assert not (is_whole and forgotten), forgotten


def _weights(described: Mapping[str, Any]) -> dict[str, Any]:
    """By names that do not say what the layers are made of.

    Transformer Engine puts pickles beside its weights, which are left out.
    """
    weights = {}
    for name, entry in described.items():
        if isinstance(entry, ShardedObject):
            if not is_empty_object(entry.key):
                continue
            entry.data = None
        entry.key = key_of(entry.key)
        weights[name] = entry
    return weights


def named(stages: Sequence[VilaModel]) -> Iterator[tuple[str, VilaModel]]:
    """The names Megatron-Core's optimizer expects: model, or model0, model1 ... when virtual."""
    for index, stage in enumerate(stages):
        yield ("model" if len(stages) == 1 else f"model{index}"), stage


def content_metadata() -> dict[str, Any]:
    """The only optimizer format of Megatron-Core 0.19.2 that every other layout can read."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


def random_state(ranks: Ranks) -> ShardedObject:
    """This rank's random generators, which mean something to the same rank of the same layout."""
    return ShardedObject(
        RANDOM,
        _generators(),
        global_shape=(ranks.layout.world_size(),),
        global_offset=(ranks.rank,),
    )


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every generator to where ``random_state`` found it; a GPU's not from a CPU's."""
    random.setstate((3, tuple(state["python"]["words"].tolist()), state["python"]["gauss"]))
    numpy = state["numpy"]
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy["pos"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if (state["cuda"] is not None) != torch.cuda.is_available():
        return  # the rest is of another kind of generator, with states of another size
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    get_cuda_rng_tracker().set_states(state["tensor_parallel"])


def _generators() -> dict[str, Any]:
    """Tensors and plain values only, so that they can be read without unpickling objects."""
    _, words, gauss = random.getstate()
    _, key, pos, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(key.astype(np.int64)),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tensor_parallel": get_cuda_rng_tracker().get_states(),
    }


def _create_missing_moments(optimizer: Any) -> None:
    """Adam makes its moments in the first step; a checkpoint before that needs them too."""
    for part in optimizer.chained_optimizers:
        if part.optimizer is not None and part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def _count_steps_alike(optimizer: Any, ranks: Ranks) -> None:
    """Adam's steps, from a rank that counts them to one that does not.

    Transformer Engine's FusedAdam before 2.20, and Apex's, count none where a rank has nothing that
    learns. Rank 0 writes them, and would have the others begin again with their bias corrections.
    """
    groups = [group for part in optimizer.chained_optimizers for group in part.param_groups]
    steps = torch.tensor([max((int(group.get("step", 0)) for group in groups), default=0)])
    steps = steps.to(ranks.device)
    dist.all_reduce(steps, op=dist.ReduceOp.MAX)
    for group in groups:
        if steps:
            group["step"] = int(steps)

"""What is brought to the host's memory is the optimizer's state, whole, and within a bound."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint import host_copy
from vila_mc.checkpoint.host_copy import bring_to_host
from vila_mc.checkpoint.host_memory import HostMemory
from vila_mc.checkpoint.state import run_state
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train import step
from vila_mc.train.step import Trainer

KEYS = ("param", "exp_avg", "exp_avg_sq")


def shards(part: Any) -> Iterator[tuple[Any, int, dict[str, Tensor]]]:
    """Of every weight that this rank has a share of: where that begins in it, and its state."""
    for ranges in part.gbuf_ranges:
        for buckets in ranges.values():
            for bucket in buckets:
                for weight, places in bucket["param_map"].items():
                    state = part._get_main_param_and_optimizer_states(weight)
                    yield weight, places["param"].start, state


def state_of_all_ranks(part: Any) -> dict[tuple[int, str], Tensor]:
    """By number of the weight and key, put together from every rank's shares."""
    weights = [weight for buffer in part.buffers for weight in buffer.param_index_map]
    numbers = {id(weight): number for number, weight in enumerate(weights)}
    mine = [(numbers[id(weight)], at, state) for weight, at, state in shards(part)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    whole = {(n, key): torch.zeros(w.numel()) for n, w in enumerate(weights) for key in KEYS}
    for number, at, state in (share for theirs in everyone for share in theirs):
        for key in KEYS:
            whole[number, key][at : at + state[key].numel()] = state[key].detach()
    return whole


def must_not_write(item: int, values: Tensor) -> None:
    pytest.fail("there is room for all")


def wrong(at_once: int, bucket_size: int | None) -> tuple[bool, list[tuple[int, str]]]:
    """Whether there is padding between buckets; what was brought otherwise than it is."""
    run = tiny_run(parallel={"overlap_grad_reduce": bucket_size is not None})
    host_copy._GATHERED = at_once
    module: Any = step
    module.DistributedDataParallelConfig = partial(
        module.DistributedDataParallelConfig, bucket_size=bucket_size
    )
    with distributed(run.parallel, seed=1) as ranks:
        trainer = Trainer(run, ranks, build_stages(run, ranks))
        trainer.step(tiny_microbatches(run, ranks.at.data, ranks.layout.data))
        (part,) = trainer.optimizer.chained_optimizers
        whole = state_of_all_ranks(part)
        state = run_state(ranks, trainer.stages, trainer.optimizer, is_loading=False)
        described = {
            (number, key): entry.data
            for number, entries in state["optimizer"]["param_state"].items()
            for key, entry in entries.items()
        }
        assert described.keys() == whole.keys()
        names = list(described)
        tensors = dict(enumerate(described.values()))
        brought = bring_to_host(trainer.optimizer, tensors, 2**40, must_not_write)
        first = part.buffers[0].buckets[:-1]
        is_padded = any(each.grad_data.numel() > each.numel_unpadded for each in first)
        return is_padded, [
            names[number]
            for number, values in brought
            if not torch.equal(values.flatten(), whole[names[number]]) or not values.any()
        ]


@pytest.mark.parametrize("bucket_size", [None, 5000], ids=["one bucket", "buckets with padding"])
def test_pieces_make_the_whole(bucket_size: int | None) -> None:
    for at_once in (1000, 2**24):  # pieces that end amid parameters, and one
        for is_padded, differ in run_ranks(2, wrong, at_once, bucket_size):
            assert is_padded == (bucket_size is not None)
            assert differ == []


def test_memory_is_bounded_and_kept() -> None:
    memory, written = HostMemory(), []

    def write(item: int, values: Tensor) -> None:
        assert values.tolist() == [item] * len(values)
        written.append(item)

    def put(item: int, num_bytes: int) -> int:
        values = memory.take(num_bytes)
        memory.put(item, values.fill_(item))
        return values.data_ptr()

    memory.begin(100, write)
    places = [put(item, 40) for item in range(4)]
    assert written == [0, 1]
    assert places[2:] == places[:2]  # what is written makes room
    assert [item for item, _ in memory.waiting()] == [2, 3]
    put(4, 90)
    assert (written, [item for item, _ in memory.waiting()]) == ([0, 1, 2, 3], [4])
    put(5, 1000)  # more than there may be
    assert (written[-1], [item for item, _ in memory.waiting()]) == (4, [5])
    memory.begin(100, write)
    assert memory.waiting() == []
    written.clear()
    before = {put(item, 40) for item in (6, 7)}
    memory.begin(100, write)
    assert {put(item, 40) for item in (8, 9)} == before  # what waited is free again
    assert written == []

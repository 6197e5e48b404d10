"""The optimizer's state in the host's memory, gathered in pieces, is what Megatron-Core gathers."""

from typing import Any

import torch

from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint import host_copy
from vila_mc.checkpoint.host_copy import HostCopy
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer


def copies(at_once: int) -> list[bool]:
    """After a step: of every buffer and key, whether the two are equal."""
    run = tiny_run()
    host_copy._GATHERED = at_once
    with distributed(run.parallel, seed=1) as ranks:
        trainer = Trainer(run, ranks, build_stages(run, ranks))
        trainer.step(tiny_microbatches(run, ranks.at.data, ranks.layout.data))
        equal = []
        for part in trainer.optimizer.chained_optimizers:
            ours: Any = HostCopy(part)()
            theirs: Any = part.get_parameter_state_dp_zero(use_gloo_comm=False)
            if ranks.rank:  # Megatron-Core gives it to the first rank alone
                theirs = ours
            for index, ranges in enumerate(part.gbuf_ranges):
                (dtype,) = ranges
                for key in ("param", *part.optimizer_state_keys):
                    mine, whole = ours[index][dtype][key], theirs[index][dtype][key]
                    equal.append(torch.equal(mine, whole) and bool(mine.any()))
        return equal


def test_pieces_make_the_whole() -> None:
    for at_once in (1000, 2**24):  # pieces that end amid parameters, and one
        for equal in run_ranks(2, copies, at_once):
            assert equal
            assert all(equal)

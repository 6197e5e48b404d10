"""Faults that a run on CPUs cannot see, planted one at a time: each is seen and its place named."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.rehearsal.small import rehearsed, small_run
from tests.support.ranks import run_ranks
from vila_mc.flow import Microbatch
from vila_mc.model.language import LanguageModel
from vila_mc.rehearsal.every_rank import innermost
from vila_mc.rehearsal.match import match
from vila_mc.rehearsal.one_rank import rehearse_rank
from vila_mc.train.step import Trainer

MIXED = "Expected all tensors to be on the same device"


def left_on_the_cpu(field: str) -> None:
    """A field of the batch does not follow to the device."""
    to = Microbatch.to

    def to_all_but_one(batch: Microbatch, device: torch.device) -> Microbatch:
        return replace(to(batch, device), **{field: getattr(batch, field)})

    Microbatch.to = to_all_but_one  # type: ignore[assignment]


def rope_on_the_cpu() -> None:
    preprocess = LanguageModel._preprocess

    def preprocess_(model: LanguageModel, *args: Any, **options: Any) -> Any:
        embedded, rotary, *rest = preprocess(model, *args, **options)
        return embedded, rotary.cpu(), *rest

    LanguageModel._preprocess = preprocess_  # type: ignore[assignment]


def before_the_figures(collective: Callable[[], None]) -> None:
    """Another collective before figures are summed."""
    total = Trainer._sum_over_ranks

    def total_(trainer: Trainer, *args: Any) -> Any:
        collective()
        return total(trainer, *args)

    Trainer._sum_over_ranks = total_  # type: ignore[assignment]


def reduce_on_the_cpu() -> None:
    dist.all_reduce(torch.zeros(4))


def reduce_turned() -> None:
    dist.all_reduce(torch.zeros(4, 6, device="cuda").t())


def reduce_on_some() -> None:
    if dist.get_rank() == 1:
        dist.all_reduce(torch.zeros(4, device="cuda"))


def ending(guard: Path, planted: Callable[[], None]) -> tuple[list[str], str]:
    """Complaints of a rank, or its error and where that comes from."""
    planted()
    try:
        return rehearse_rank(small_run(), 2, 0, guard, 1).complaints, ""
    except RuntimeError as error:
        return [str(error)], innermost(error)


@pytest.mark.parametrize(
    ("planted", "said", "where"),
    [
        (partial(left_on_the_cpu, "tokens"), MIXED, "megatron/core/tensor_parallel/layers"),
        (partial(left_on_the_cpu, "labels"), MIXED, "vila_mc/train/step"),
        (partial(left_on_the_cpu, "images"), MIXED, "vila_mc/model/vision_tower"),
        (partial(left_on_the_cpu, "image_starts"), "same device", "vila_mc/kernels/reference"),
        (rope_on_the_cpu, MIXED, "megatron/core/models/common/embeddings/rope_utils"),
        (
            partial(before_the_figures, reduce_on_the_cpu),
            "allreduce_: a tensor on cpu, which NCCL refuses",
            "vila_mc/train/step",
        ),
        (
            partial(before_the_figures, reduce_turned),
            "[6, 4] with strides [1, 6] is not contiguous",
            "vila_mc/train/step",
        ),
    ],
    ids=["tokens", "labels", "images", "image_starts", "rope", "collective", "turned"],
)
def test_what_a_gpu_refuses_is_named(
    planted: Callable[[], None], said: str, where: str, guard: Path
) -> None:
    ((complaints, place),) = run_ranks(1, ending, guard, planted)
    assert complaints, "nothing was seen"
    assert any(said in line for line in complaints), complaints
    assert where in place + "".join(complaints), (place, complaints)


def test_a_sound_step_has_no_complaints(guard: Path) -> None:
    assert rehearsed(guard, small_run(), world_size=2).complaints == []


def test_a_collective_of_one_rank_alone_is_found(guard: Path) -> None:
    run = small_run(parallel={"tensor": 2, "sequence": True})
    planted = partial(before_the_figures, reduce_on_some)
    good, bad = rehearsed(guard, run, 2, 0), rehearsed(guard, run, 2, 1, planted=planted)
    assert match([good, rehearsed(guard, run, 2, 1)]).differences == []
    (difference,) = match([good, bad]).differences
    assert "group world, ranks 0 and 1" in difference
    assert "tests/rehearsal" not in difference

"""Memory that is counted without any is the memory that real tensors take, to the byte."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.rehearsal.small import rehearsed, small_run
from tests.support.ranks import run_ranks
from vila_mc.config.run import RunConfig
from vila_mc.parallel.groups import distributed
from vila_mc.rehearsal.device import own_objects, without_numbers
from vila_mc.rehearsal.one_rank import record_steps
from vila_mc.rehearsal.record import RankRecord
from vila_mc.rehearsal.recorder import Recorder

EVERYTHING = {"trainable": ["vision", "connector", "language"]}


def on_a_cpu(run: RunConfig, is_real: bool) -> bytes:
    """Two steps of two microbatches on the CPU's own kernels, with numbers or without."""
    fakes: Any = nullcontext() if is_real else FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder("cpu", is_real=is_real)
    with (
        distributed(run.parallel, seed=1) as ranks,
        own_objects() if is_real else without_numbers(),
        fakes,
        recorder,
    ):
        return record_steps(run, ranks, recorder, num_microbatches=2).to_json()


@pytest.mark.parametrize(
    "train",
    [{}, EVERYTHING, {"recompute": "full"}, {"precision": "fp32"}],
    ids=["frozen tower", "everything", "recompute", "fp32"],
)
def test_fake_tensors_take_what_real_ones_take(train: dict[str, Any]) -> None:
    run = small_run(train=train)
    # In processes of their own: tables that the kernels' twins keep would be of the other kind.
    (real,), (fake,) = (run_ranks(1, on_a_cpu, run, is_real) for is_real in (True, False))
    one, other = RankRecord.from_json(real), RankRecord.from_json(fake)
    assert other.build.num_bytes == one.build.num_bytes
    assert other.step.by_kind == one.step.by_kind
    assert other.step == one.step  # every tensor that is named, with its place
    assert other.save == one.save
    assert other.flops == one.flops
    assert one.step.by_kind["activations"] > 0


def test_what_lives_on_is_what_the_formats_ask_for(guard: Path) -> None:
    whole = rehearsed(guard, small_run(train=EVERYTHING))
    weights = whole.num_weights
    kinds = whole.step.by_kind
    # Buffers are padded to multiples of 64 weights, and every tensor to 512 bytes.
    assert kinds["weights"] == pytest.approx(2 * weights, rel=0.01)
    assert kinds["gradients"] == pytest.approx(4 * weights, rel=0.01)
    assert kinds["optimizer"] == pytest.approx(12 * weights, rel=0.1)
    frozen = rehearsed(guard, small_run(), world_size=8)
    assert frozen.num_trained < frozen.num_weights
    assert frozen.step.by_kind["gradients"] == pytest.approx(4 * frozen.num_trained, rel=0.01)
    # A rank of eight keeps an eighth, in tensors of a few elements here.
    assert frozen.step.by_kind["optimizer"] < kinds["optimizer"] / 4


def test_recomputation_keeps_less_and_computes_more(guard: Path) -> None:
    wide = {"language": {"layers": 4}}
    kept = rehearsed(guard, small_run(model=wide))
    again = rehearsed(guard, small_run(model=wide, train={"recompute": "full"}))
    assert "recompute" not in kept.flops
    assert again.flops["recompute"] > 0
    assert again.flops["forward"] == kept.flops["forward"]
    assert again.flops["backward"] == kept.flops["backward"]
    assert again.step.by_kind["activations"] < kept.step.by_kind["activations"]


def test_the_largest_tensors_are_named_by_where_they_are_made(guard: Path) -> None:
    record = rehearsed(guard, small_run())
    places = {tensors.where.partition(":")[0] for tensors in record.step.tensors}
    assert "megatron/core/distributed/param_and_grad_buffer.py" in places
    assert "vila_mc/parallel/adam.py" in places
    assert all(Path(torch.__file__).parent.name not in place for place in places)

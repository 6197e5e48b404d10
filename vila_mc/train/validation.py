"""The loss on data that nothing learns from, measured without a trace in what is learnt."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist

from vila_mc.flow import Microbatch
from vila_mc.model.fp8 import without_a_trace_in_fp8
from vila_mc.observe.record import ValidationRecord
from vila_mc.train.faults import StopRequest
from vila_mc.train.step import Trainer, means_by_entry


def validate(
    trainer: Trainer,
    passes: Iterable[Sequence[Microbatch]],
    num_entries: int,
    step: int,
    stop: StopRequest | None = None,
) -> tuple[ValidationRecord, bool]:
    """Measure the mean loss over all trained positions; every rank must call this together.

    Each position weighs the same, whatever the layout, micro-batch or packing. Weights, gradients,
    moments and random generators stay as they are.

    Args:
        trainer: what has been learnt so far.
        passes: this data-parallel rank's share of the data, as many microbatches on every rank.
        num_entries: datasets that the data come from.
        step: optimizer steps done.
        stop: becomes true when this rank is asked to stop.

    Returns:
        what was measured, the same on every rank but for the time; whether any rank was asked to
        stop until its end.
    """
    started = time.monotonic()
    figures = torch.zeros(2, num_entries, dtype=torch.float64)
    with (
        _evaluating(trainer.wrapped),
        without_a_trace_in_fp8(trainer.stages),
        torch.no_grad(),
    ):
        for microbatches in passes:
            figures += trainer.measure(microbatches, num_entries)
    asked = float(stop is not None and stop.was_made)
    total = torch.cat([figures.flatten(), torch.tensor([asked], dtype=torch.float64)])
    total = total.to(trainer.ranks.device)
    dist.all_reduce(total)
    record = validation_record(total[:-1].cpu().view(2, -1), step, time.monotonic() - started)
    return record, bool(total[-1] > 0)


def validation_record(figures: torch.Tensor, step: int, seconds: float) -> ValidationRecord:
    """From the sums of all ranks.

    Args:
        figures: [2, entries] float64: loss sums, then trained positions.
        step: optimizer steps done.
        seconds: that it took.
    """
    sums, tokens = figures
    return ValidationRecord(
        step=step,
        validation_loss=float(sums.sum() / tokens.sum()) if tokens.any() else math.nan,
        validation_tokens=int(tokens.sum()),
        validation_loss_by_entry=list(means_by_entry(sums, tokens)),
        validation_ms=round(1000 * seconds, 3),
    )


@contextlib.contextmanager
def _evaluating(stages: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Every module as in use, without dropout; afterwards as it was."""
    modules = [module for stage in stages for module in stage.modules()]
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in zip(modules, before, strict=True):
            module.training = was_training

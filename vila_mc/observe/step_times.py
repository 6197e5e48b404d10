"""What the time of a step was spent on: of each rank, and of all together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from vila_mc.observe.spans import Span

_PART_OF = {
    "data": "data",
    "vision": "vision",
    "forward-compute": "forward",
    "backward-compute": "backward",
    "reduction": "reduction",
    "norm": "norm",
    "optimizer": "optimizer",
    "forward-backward": "schedule",
}
"""Spans that add up to a step; those of Megatron-Core's schedules have its names."""


class StepTimes(NamedTuple):
    """Milliseconds of a step on one rank; all but the first add up to the first."""

    step: float
    data: float
    """Waiting for what it reads."""
    vision: float
    """Vision tower and connector, forward."""
    forward: float
    """The other parts, forward."""
    backward: float
    """All that goes backward, recomputation included."""
    pipeline: float
    """Within the pipeline's schedule, neither computing nor reducing; 0 without stages."""
    reduction: float
    """Sums of gradients over ranks that nothing hides."""
    optimizer: float
    """Clipping, the update, and gathering of what was updated."""
    norm: float
    """The gradients' norm and the step's figures, and waiting for ranks that come to it later."""
    other: float
    """What is left."""

    @staticmethod
    def of(seconds: float, spans: Sequence[Span], *, has_stages: bool) -> "StepTimes":
        """The times of a step.

        Args:
            seconds: all of it.
            spans: what was done in it.
            has_stages: whether there are several pipeline stages.
        """
        ms: Counter[str] = Counter()
        for span in spans:
            ms[_PART_OF.get(span.name, "")] += 1000 * (span.end - span.start)  # type: ignore[assignment]
        idle = ms["schedule"] - ms["forward"] - ms["backward"] - ms["reduction"]
        parts = {
            "data": ms["data"],
            "vision": ms["vision"],
            "forward": ms["forward"] - ms["vision"],
            "backward": ms["backward"],
            "pipeline": idle if has_stages else 0.0,
            "reduction": ms["reduction"],
            "optimizer": ms["optimizer"],
            "norm": ms["norm"],
        }
        step = 1000 * seconds
        return StepTimes(step=step, **parts, other=step - sum(parts.values()))

    def busy(self) -> float:
        """What it worked itself, as far as that can be told from waiting."""
        return self.data + self.vision + self.forward + self.backward + self.optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTimes:
    """Milliseconds of a step on all ranks: means, which add up to the mean step."""

    step: float
    data: float
    vision: float
    forward: float
    backward: float
    pipeline: float
    reduction: float
    optimizer: float
    other: float
    busy: float
    """What a rank worked itself."""
    slowest_rank: int
    """The rank that worked longest."""
    slowest_busy: float

    @staticmethod
    def of(ranks: Sequence[StepTimes], *, has_stages: bool) -> "SharedTimes":
        """From the times of every rank, by rank.

        The last one to come to the norm does not wait there, so that what the others take longer
        is waiting: for the pipeline to run empty, or, without stages, for the sums of gradients.
        """
        means = StepTimes(*(sum(column) / len(ranks) for column in zip(*ranks, strict=True)))
        norm = min(each.norm for each in ranks)
        waiting, busy = means.norm - norm, [each.busy() for each in ranks]
        slowest = max(range(len(ranks)), key=busy.__getitem__)
        return SharedTimes(
            step=means.step,
            data=means.data,
            vision=means.vision,
            forward=means.forward,
            backward=means.backward,
            pipeline=means.pipeline + (waiting if has_stages else 0.0),
            reduction=means.reduction + (0.0 if has_stages else waiting),
            optimizer=means.optimizer + norm,
            other=means.other,
            busy=means.busy(),
            slowest_rank=slowest,
            slowest_busy=busy[slowest],
        )

    def figures(self) -> dict[str, float]:
        """By the names of ``StepRecord``."""
        times = {name: value for name, value in asdict(self).items() if name != "slowest_rank"}
        return {f"{name}_ms": round(value, 3) for name, value in times.items()}

"""The alarms of a run: which detectors it has, and how often each may speak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vila_mc.config.alarms import AlarmConfig
from vila_mc.observe.detectors import (
    DataWait,
    Deviation,
    Finding,
    RankTimes,
    Slowdown,
    Straggler,
    Substitutes,
)
from vila_mc.observe.record import Event, EventKind, StepRecord
from vila_mc.observe.step_times import StepTimes

OfStep = Callable[[StepRecord], Finding | None]
OfRanks = Callable[[Sequence[RankTimes], Sequence[str]], Finding | None]


def of_steps(config: AlarmConfig) -> dict[EventKind, OfStep]:
    """The detectors that look at every step."""
    window, table = config.window, dict[EventKind, OfStep]()
    if config.deviations is not None:
        loss = Deviation("loss", lambda record: record.loss, config.deviations, window)
        norm = Deviation(
            "gradient norm",
            lambda record: record.grad_norm,
            config.deviations,
            window,
            is_by_factor=True,
        )
        table |= {"loss": loss.look, "grad_norm": norm.look}
    if config.substitutes is not None:
        table["substitutes"] = Substitutes(config.substitutes, window).look
    if config.slowdown is not None:
        table["slowdown"] = Slowdown(config.slowdown, window).look
    return table


def of_ranks(config: AlarmConfig) -> dict[EventKind, OfRanks]:
    """The detectors that compare the times of ranks."""
    table = dict[EventKind, OfRanks]()
    if config.straggler is not None:
        table["straggler"] = Straggler(config.straggler).look
    if config.data_wait is not None:
        table["data_wait"] = DataWait(config.data_wait).look
    return table


class MeansOfRanks:
    """Adds up the times of all ranks over some steps.

    Args:
        peers: a number of each rank, the same for ranks that do the same work.
    """

    def __init__(self, peers: Sequence[int]) -> None:
        self._peers, self._steps = peers, 0
        self._sums = [(0.0, 0.0, 0.0)] * len(peers)

    def add(self, of_ranks: Sequence[StepTimes]) -> None:
        """Take one step, by rank."""
        self._steps += 1
        self._sums = [
            (passes + one.vision + one.forward + one.backward, data + one.data, step + one.step)
            for (passes, data, step), one in zip(self._sums, of_ranks, strict=True)
        ]

    def take(self) -> list[RankTimes]:
        """The means of the steps since the last call."""
        sums, self._sums = self._sums, [(0.0, 0.0, 0.0)] * len(self._peers)
        steps, self._steps = self._steps, 0
        return [
            RankTimes(rank, self._peers[rank], *(each / steps for each in of_rank))
            for rank, of_rank in enumerate(sums)
        ]


@dataclass(slots=True)
class _Said:
    """When an alarm was said last, and how often it held since."""

    step: int
    since: int = 0


class Alarms:
    """What looks wrong in a run, each kind said at most once in ``repeat_after`` steps.

    Args:
        config: thresholds and how often.
        names: what a person calls each rank.
        peers: see ``MeansOfRanks``.
    """

    def __init__(self, config: AlarmConfig, names: Sequence[str], peers: Sequence[int]) -> None:
        self._repeat_after, self._names = config.repeat_after, names
        self._compare_every = config.compare_ranks_every
        self._means, self._is_warm = MeansOfRanks(peers), False
        self._of_steps, self._of_ranks = of_steps(config), of_ranks(config)
        self._said: dict[EventKind, _Said] = {}

    def after_step(self, record: StepRecord, of_ranks: Sequence[StepTimes]) -> list[Event]:
        """What is to be said of a step.

        Args:
            record: its figures.
            of_ranks: its times, by rank.
        """
        found = {kind: look(record) for kind, look in self._of_steps.items()}
        events = self._to_say(record.step, found)
        self._means.add(of_ranks)
        if record.step % self._compare_every == 0:
            times = self._means.take()
            if self._is_warm:
                events += self.after_comparison(record.step, times)
            self._is_warm = True  # the first steps wait for workers, caches and compilers
        return events

    def after_comparison(self, step: int, times: Sequence[RankTimes]) -> list[Event]:
        """What is to be said of the times of all ranks, by rank."""
        found = {kind: look(times, self._names) for kind, look in self._of_ranks.items()}
        return self._to_say(step, found)

    def _to_say(self, step: int, found: dict[EventKind, Finding | None]) -> list[Event]:
        return [
            self._event(step, kind, finding)
            for kind, finding in found.items()
            if finding is not None and self._may_be_said(step, kind)
        ]

    def _may_be_said(self, step: int, kind: EventKind) -> bool:
        said = self._said.get(kind)
        if said is None or step - said.step >= self._repeat_after:
            return True
        said.since += 1
        return False

    def _event(self, step: int, kind: EventKind, finding: Finding) -> Event:
        before = self._said.get(kind)
        self._said[kind] = _Said(step)
        again = ""
        if before is not None and before.since:
            again = f" (and {before.since:,} times more since step {before.step:,})"
        return Event(
            step=step,
            event=kind,
            message=finding.message + again,
            value=finding.value,
            usual=finding.usual,
            rank=finding.rank,
            where=None if finding.rank is None else self._names[finding.rank],
        )

"""What a run says and records of its steps: to people, and to every sink."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist

from vila_mc.checkpoint.disk import disk_errors_explained, on_first_rank
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import StepData, TrainingData
from vila_mc.errors import say
from vila_mc.flow import Microbatch, StepResult
from vila_mc.observe.alarms import Alarms
from vila_mc.observe.history import record_start
from vila_mc.observe.record import Event, StepRecord, ValidationRecord
from vila_mc.observe.sinks import Sink, open_sinks
from vila_mc.observe.spans import Span
from vila_mc.observe.speed import Speedometer
from vila_mc.observe.step_times import SharedTimes
from vila_mc.parallel.agreement import names_of_ranks
from vila_mc.parallel.groups import Ranks
from vila_mc.train.announce import announce, warn
from vila_mc.train.foretold import Foretold
from vila_mc.train.learning import need_images
from vila_mc.train.start_facts import device_name, start_facts
from vila_mc.train.state import TrainState
from vila_mc.train.watch import gather_times

_STEPS_WITHOUT_IMAGES = 100
"""In a row, after which it is said that some parts learn nothing."""
_MOST_NAMED = 8
"""Samples in one line."""


class Journal:
    """The records of one run on this rank; the first has the sinks.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        data: what this rank reads.
        after_step: the step that the run goes on after.
    """

    def __init__(
        self, config: RunConfig, ranks: Ranks, data: TrainingData, after_step: int
    ) -> None:
        self.config, self.ranks, self.data = config, ranks, data
        self.sinks: list[Sink] = []
        on_first_rank(ranks, lambda: self._open(after_step), config.train.output)
        self.steps_without_images = 0
        device = device_name(ranks.device)
        self._speedometer = Speedometer(config, ranks.layout.world_size(), device)
        self._foretold = Foretold(config, ranks.layout.world_size(), device)
        self._saving_ms = 0.0
        names = names_of_ranks(ranks.device)
        places = map(ranks.layout.coordinates, range(len(names)))
        self._alarms = Alarms(config.train.alarms, names, [at.pipeline for at in places])

    def write_step(
        self,
        before: TrainState,
        after: TrainState,
        data: StepData,
        result: StepResult,
        seconds: float,
        spans: Sequence[Span],
    ) -> None:
        """One finished step, and what is odd about it. Every rank must call this together.

        Args:
            before, after: where the run stood and stands.
            data: what this rank read.
            result: what was computed.
            seconds: that it took on this rank, waiting for the data included.
            spans: what was done in it.
        """
        if self.ranks.at.tensor == 0:
            _warn_of_substitutes(data.microbatches)
        has_stages = self.ranks.layout.pipeline > 1
        of_ranks, peak_memory_gib = gather_times(self.ranks, seconds, spans)
        times = SharedTimes.of(of_ranks, has_stages=has_stages)
        record = self._record(after.step, result, times, peak_memory_gib)
        self._saving_ms = 0.0
        self._tell(lambda sink: sink.write(record))
        if self.ranks.is_first():
            self._write_events(self._alarms.after_step(record, of_ranks))
        for what in self._foretold.after_step(
            seconds=times.step / 1000, images=result.num_images, gib=peak_memory_gib
        ):
            warn(self.ranks, what)
        self.steps_without_images = 0 if result.num_images else self.steps_without_images + 1
        if self.steps_without_images % _STEPS_WITHOUT_IMAGES == 0 and not result.num_images:
            self._warn_of_no_images()
        if result.overflowed:
            what = f"step {after.step} overflowed in fp16: the loss is scaled by less"
            announce(self.ranks, what)
        elif result.skipped:
            self._write_bad_step(before, after, result)

    def _record(
        self, step: int, result: StepResult, times: SharedTimes, peak_memory_gib: float
    ) -> StepRecord:
        """All figures of a step."""
        speed = self._speedometer.of(
            positions=result.positions,
            pairs=result.pairs,
            images=result.num_images,
            seconds=times.step / 1000,
        )
        return StepRecord(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            skipped=result.skipped,
            learning_rate=result.learning_rate,
            trained_tokens=result.trained_tokens,
            images=result.num_images,
            samples=result.num_samples,
            filled=round(result.filled, 4),
            substitutes=result.substitutes,
            loss_by_entry=list(result.loss_by_entry),
            positions=result.positions,
            peak_memory_gib=round(peak_memory_gib, 3),
            save_ms=round(self._saving_ms, 3),
            slowest_rank=times.slowest_rank,
            **times.figures(),
            **speed._asdict(),
        )

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What is done within keeps training waiting, which the next step's record says."""
        started = time.perf_counter()
        yield
        self._saving_ms += 1000 * (time.perf_counter() - started)

    def write_validation(self, record: ValidationRecord) -> None:
        """One validation, after the step that it follows."""
        self._tell(lambda sink: sink.write_validation(record))

    def close(self) -> None:
        """Close the sinks."""
        self._tell(lambda sink: sink.close())

    def _open(self, after_step: int) -> None:
        """The sinks, which learn at once what the run is."""
        self.sinks = open_sinks(self.config, after_step)
        record = start_facts(self.config, self.ranks, after_step)
        record_start(self.config.train.output, record)
        for sink in self.sinks:
            sink.start(record)

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        """Tell every sink something.

        A file that is appended to does not say its name when its disk is full, so it is said here.
        """
        with disk_errors_explained(self.config.train.output):
            for sink in self.sinks:
                tell(sink)

    def _write_events(self, events: Sequence[Event]) -> None:
        def write(sink: Sink) -> None:
            for event in events:
                sink.write_event(event)

        self._tell(write)

    def _warn_of_no_images(self) -> None:
        if idle := need_images(self.config):
            warn(
                self.ranks,
                f"{', '.join(idle)} had no gradient in the last {self.steps_without_images:,} "
                "steps, which had no images",
            )

    def _write_bad_step(self, before: TrainState, after: TrainState, result: StepResult) -> None:
        """Say which step changed nothing and which samples it had; together on all ranks."""
        names = self.data.names(before.position())
        mine = [name for index in result.bad_microbatches for name in names[index]]
        of_ranks: list[list[str]] = [[]] * self.ranks.layout.world_size()
        dist.all_gather_object(of_ranks, mine if self.ranks.at.tensor == 0 else [])
        if not self.ranks.is_first():
            return
        suspects = [name for theirs in of_ranks for name in theirs]
        samples = suspects or self.data.names_of_all(before.position())
        if suspects:
            which = f"No finite loss from {_listed(suspects)}"
        else:
            first, last = before.samples_seen, after.samples_seen - 1
            which = f"It read samples {first:,} to {last:,} of the run: {_listed(samples)}"
        event = Event(
            step=after.step,
            event="bad_step",
            message=f"changed no weight: {result.in_words()} ({after.bad_steps} in a row; "
            f"train.max_bad_steps is {self.config.train.max_bad_steps}). {which}",
            value=float(after.bad_steps),
            usual=float(self.config.train.max_bad_steps),
            samples=samples,
        )
        self._write_events([event])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _warn_of_substitutes(microbatches: Sequence[Microbatch]) -> None:
    """Say which images were replaced; only the ranks that decode images know."""
    for batch in microbatches:
        for message in batch.substitutes:
            say(f"warning: {message} Its mean colour stands in for it.", to_stderr=True)

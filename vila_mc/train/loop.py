"""A run from start or resume to its last step."""

import math
from collections.abc import Iterator

from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import StepData, TrainingData
from vila_mc.errors import TrainingError
from vila_mc.flow import StepResult
from vila_mc.parallel.groups import Ranks
from vila_mc.train.faults import StopRequest
from vila_mc.train.journal import Journal
from vila_mc.train.saves import Saves
from vila_mc.train.start import start
from vila_mc.train.state import TrainState
from vila_mc.train.tracing import Tracing
from vila_mc.train.validation import validate


class TrainingLoop:
    """Everything one rank needs to train one phase.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        data: what this rank reads.
        stop: becomes true when the user or the cluster wants the run to end.

    Raises:
        VilaError: checkpoint or output cannot be used; before any step.
    """

    def __init__(
        self, config: RunConfig, ranks: Ranks, data: TrainingData, stop: StopRequest
    ) -> None:
        self.config, self.ranks, self.data, self.stop = config, ranks, data, stop
        started = start(config, ranks, data)
        self.trainer, self.state = started.trainer, started.state
        self.saves = Saves(config, ranks, started.trainer, started.output, started.origin)
        self.tracing = Tracing(config, ranks, started.trainer.spans, started.state.step)
        self.journal = Journal(config, ranks, data, started.state.step)
        self._validation_loss: float | None = None
        """Of the state of now, if it was measured."""

    def fit(self) -> TrainState:
        """Train to the last step, or until asked to stop; the last state is always saved.

        Raises:
            TrainingError: on every rank; too many steps in a row had no finite loss or gradient, a
                weight is not finite, or no token is trained.
            DataError: an image no longer decodes, and data.on_bad_image is stop.
            SetupError: a checkpoint cannot be written, or a worker process died.
        """
        batches = self.data.iterate(self.state.position())
        try:
            while self.state.step < self.config.train.steps:
                result = self._train_step(batches)
                with self.journal.saving():
                    self.saves.finish(wait=False)
                should_stop = result.should_stop
                if self._is_validation_due():
                    should_stop |= self._validate()
                if should_stop or self.saves.is_due(self.state):
                    with self.journal.saving():
                        self.saves.save(self.state, self._validation_loss)
                if should_stop:
                    break
        except TrainingError:  # on every rank; what was good before it is kept
            self.saves.finish(wait=True)
            raise
        self.tracing.close()
        self.saves.finish(wait=True)
        return self.state

    def close(self) -> None:
        """Close the sinks, give up an unfinished save and the output."""
        self.journal.close()
        self.saves.close()

    def _train_step(self, steps: Iterator[StepData]) -> StepResult:
        spans, self._validation_loss = self.trainer.spans, None
        spans.begin()
        with spans.span("data"):
            data = next(steps)
        step = self.state.step + 1
        with self.tracing.during(step):
            result = self.trainer.step(data.microbatches, should_stop=self.stop.was_made)
        seconds, taken = spans.end()
        self.tracing.take(step, len(data.microbatches), seconds, taken)
        before, self.state = self.state, self.state.after(result, data.samples_seen)
        self.journal.write_step(before, self.state, data, result, seconds, taken)
        self._require_few_bad_steps(result)
        return result

    def _require_few_bad_steps(self, result: StepResult) -> None:
        bad_steps, step = self.state.bad_steps, self.state.step
        if (
            result.skipped
            and not result.overflowed
            and bad_steps >= self.config.train.max_bad_steps
        ):
            raise TrainingError(
                f"{bad_steps} steps in a row up to step {step} had no finite loss or gradient "
                f"({result.in_words()}) and changed no weight. Lower optimizer.lr, look at the "
                "samples named above, or go on from an earlier checkpoint; train.max_bad_steps "
                "says how many are passed over."
            )

    def _is_validation_due(self) -> bool:
        train, step = self.config.train, self.state.step
        is_due = self.config.validates() and step % train.validate_every == 0
        return is_due or (self.config.validates() and step == train.steps)

    def _validate(self) -> bool:
        """Before a save: what a checkpoint has behind it has been measured.

        Returns:
            whether some rank was asked to stop meanwhile.
        """
        num_entries, step = self.config.data.num_validation_sets(), self.state.step
        passes = self.data.validation()
        record, should_stop = validate(self.trainer, passes, num_entries, step, self.stop)
        self.journal.write_validation(record)
        if math.isfinite(record.validation_loss):
            self._validation_loss = record.validation_loss
        return should_stop

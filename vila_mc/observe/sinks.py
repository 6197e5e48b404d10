"""Where the records of a run go: every sink is a file of this package and a line here."""

from collections.abc import Callable
from typing import Protocol

from vila_mc.config.run import RunConfig
from vila_mc.observe.console import StepPrinter
from vila_mc.observe.metrics import MetricsLog
from vila_mc.observe.record import StepRecord, ValidationRecord


class Sink(Protocol):
    """Takes the records of one run, in order."""

    def write(self, record: StepRecord) -> None:
        """Take one finished step."""

    def write_validation(self, record: ValidationRecord) -> None:
        """Take one validation, after the step that it follows."""

    def close(self) -> None:
        """Finish; nothing comes after it."""


SINKS: tuple[Callable[[RunConfig, int], Sink], ...] = (
    lambda config, _: StepPrinter(config.train.steps, config.train.phase),
    lambda config, after_step: MetricsLog(config.train.output, after_step),
)
"""From the configuration and the step that a run goes on after to a sink."""


def open_sinks(config: RunConfig, after_step: int) -> list[Sink]:
    """Every sink of a run that goes on after ``after_step``; ``train.output`` must exist."""
    return [make(config, after_step) for make in SINKS]

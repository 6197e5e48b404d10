"""Where the records of a run go: every sink is a file of this package and a line here."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from vila_mc.config.run import RunConfig
from vila_mc.errors import SetupError
from vila_mc.observe.console import StepPrinter
from vila_mc.observe.metrics import MetricsLog
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord
from vila_mc.observe.tensorboard import TensorBoardLog
from vila_mc.observe.weights_and_biases import WandbLog


class Sink(Protocol):
    """Takes the records of one run, in order."""

    def start(self, record: StartRecord) -> None:
        """Take what the run is, before all steps."""

    def write(self, record: StepRecord) -> None:
        """Take one finished step."""

    def write_validation(self, record: ValidationRecord) -> None:
        """Take one validation, after the step that it follows."""

    def write_event(self, event: Event) -> None:
        """Take what looks wrong, after the step that it was seen in."""

    def close(self) -> None:
        """Finish; nothing comes after it."""


SINKS: tuple[Callable[[RunConfig, int], Sink | None], ...] = (
    lambda config, _: StepPrinter(config.train.steps, config.train.phase),
    # Before the metrics are cut, which say what it was sent.
    lambda config, _: (
        WandbLog(config.train.wandb, config.train.output, config.train.phase)
        if config.train.wandb
        else None
    ),
    lambda config, after_step: MetricsLog(config.train.output, after_step),
    lambda config, after_step: (
        TensorBoardLog(config.train.output, after_step) if config.train.tensorboard else None
    ),
)
"""From the configuration and the step that a run goes on after to a sink; None if not wanted."""


def open_sinks(config: RunConfig, after_step: int) -> list[Sink]:
    """Every sink of a run that goes on after ``after_step``; ``train.output`` must exist.

    Raises:
        SetupError: one needs what is not there.
    """
    require_packages(config)
    made = (make(config, after_step) for make in SINKS)
    return [sink for sink in made if sink is not None]


def require_packages(config: RunConfig) -> None:
    """Refuse figures that a run asks for and nothing here can write.

    Raises:
        SetupError: a package is not installed.
    """
    train = config.train
    for option, package, is_wanted in (
        ("train.tensorboard", "tensorboard", train.tensorboard),
        ("train.wandb", "wandb", train.wandb is not None),
    ):
        if is_wanted and find_spec(package) is None:
            raise SetupError(
                f"{option} needs the package {package}, which is not installed. Run pip install "
                "'vila_mc[observe]', or leave the option out."
            )

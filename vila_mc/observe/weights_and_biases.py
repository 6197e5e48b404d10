"""Figures as Weights & Biases shows them; with ``WANDB_MODE=offline`` none leaves the machine."""

from dataclasses import asdict
from pathlib import Path

from vila_mc.errors import SetupError
from vila_mc.files import write_whole
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord, numbers_of

ID_NAME = "wandb-run-id"


class WandbLog:
    """Sends figures to one W&B run, which a run that goes on continues.

    Args:
        project: of W&B.
        directory: the run's output, whose name is the W&B run's, too. ``wandb-run-id`` in it says
            which W&B run it is.
        phase: of training; W&B groups by it.

    Raises:
        SetupError: W&B refuses to start.
    """

    def __init__(self, project: str, directory: Path, phase: str) -> None:
        import wandb

        path = directory / ID_NAME
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        try:
            self._run = wandb.init(
                project=project,
                dir=directory,
                name=directory.resolve().name,
                job_type=phase,
                id=known,
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise SetupError(
                f"train.wandb {project}: Weights & Biases did not start ({str(error).strip()}). "
                "Log in with `wandb login`, set WANDB_MODE=offline, or leave train.wandb out."
            ) from None
        if known is None:
            write_whole(path, f"{self._run.id}\n")
        # Not W&B's own count, which would drop the steps that a resumed run does again.
        self._run.define_metric("*", step_metric="step")

    def start(self, record: StartRecord) -> None:
        """Say what the run is."""
        self._run.config.update(asdict(record), allow_val_change=True)

    def write(self, record: StepRecord) -> None:
        """Send one step."""
        self._send("train", record)

    def write_validation(self, record: ValidationRecord) -> None:
        """Send one validation."""
        self._send("validation", record)

    def write_event(self, event: Event) -> None:
        """Send what looks wrong: its message beside the figures of its step."""
        self._run.log({"step": event.step, f"events/{event.event}": event.message})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _send(self, group: str, record: StepRecord | ValidationRecord) -> None:
        figures = numbers_of(record)
        del figures["step"]
        named = {f"{group}/{name}": value for name, value in figures.items()}
        self._run.log({"step": record.step, **named})

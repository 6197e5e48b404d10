"""Figures as Weights & Biases shows them; with ``WANDB_MODE=offline`` none leaves the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from vila_mc.errors import SetupError
from vila_mc.files import write_whole
from vila_mc.observe.metrics import METRICS_NAME, read_metrics
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord, numbers_of

ID_NAME = "wandb-run-id"


class WandbLog:
    """Sends figures to one W&B run, which a run that goes on continues.

    What W&B was sent stays there for good, so that of a step that is done again it keeps the first
    figures: nothing is sent twice.

    Args:
        project: of W&B.
        directory: the run's output, whose name is the W&B run's, too. ``wandb-run-id`` in it says
            which W&B run it is and how far it goes, beside the metrics, which must not be cut yet.
        phase: of training; W&B groups by it.

    Raises:
        SetupError: W&B refuses to start.
    """

    def __init__(self, project: str, directory: Path, phase: str) -> None:
        import wandb

        path = directory / ID_NAME
        words = path.read_text(encoding="utf-8").split() if path.is_file() else []
        known = words[0] if words else None
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
        self._sent = _sent_before(directory, words[1:]) if known is not None else {}
        """The last step of each group that W&B has."""
        lines = [self._run.id, *(f"{group} {step}" for group, step in self._sent.items())]
        write_whole(path, "".join(f"{line}\n" for line in lines))
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
        self._log("events", event.step, {event.event: event.message})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _send(self, group: str, record: StepRecord | ValidationRecord) -> None:
        figures = numbers_of(record)
        del figures["step"]
        self._log(group, record.step, figures)

    def _log(self, group: str, step: int, values: Mapping[str, float | str]) -> None:
        """Send what belongs to a step, unless W&B has that step already."""
        if step > self._sent.get(group, -1):
            named = {f"{group}/{name}": value for name, value in values.items()}
            self._run.log({"step": step, **named})


def _sent_before(directory: Path, words: Sequence[str]) -> dict[str, int]:
    """The last step of each group that earlier starts of a run have sent.

    Args:
        directory: the run's output; its metrics end where the start before this one did.
        words: group and step, as the starts before have left them.
    """
    sent: dict[str, int] = {}
    pairs = zip(words[::2], words[1::2], strict=False)  # a person may have changed the file
    known = [(group, int(step)) for group, step in pairs if step.isdecimal()]
    for record in read_metrics(directory / METRICS_NAME):
        group = "events" if "event" in record else "train"
        known.append(("validation" if "validation_loss" in record else group, record["step"]))
    for group, step in known:
        sent[group] = max(step, sent.get(group, step))
    return sent

"""Figures as TensorBoard shows them: event files in ``train.output/tensorboard``."""

import json
from dataclasses import asdict
from pathlib import Path

from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord, numbers_of

TENSORBOARD_NAME = "tensorboard"


class TensorBoardLog:
    """Writes event files through torch's own writer, which needs the package ``tensorboard``.

    Args:
        directory: the run's output.
        after_step: a resumed run's last step; TensorBoard then shows no later ones of the run that
            died, which may not have come to its first checkpoint.
    """

    def __init__(self, directory: Path, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
            str(directory / TENSORBOARD_NAME), purge_step=after_step + 1
        )

    def start(self, record: StartRecord) -> None:
        """Show what the run is, as text."""
        text = json.dumps(asdict(record), indent=2)
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown: as it is
        self._writer.add_text("run", indented, record.step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def write(self, record: StepRecord) -> None:
        """Add one step."""
        self._add("train", record)

    def write_validation(self, record: ValidationRecord) -> None:
        """Add one validation."""
        self._add("validation", record)

    def write_event(self, event: Event) -> None:
        """Show what looks wrong, as text."""
        message = f"    {event.message}"  # Markdown: as it is
        self._writer.add_text(f"events/{event.event}", message, event.step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()  # type: ignore[no-untyped-call]

    def _add(self, group: str, record: StepRecord | ValidationRecord) -> None:
        for name, value in numbers_of(record).items():
            if name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, record.step)  # type: ignore[no-untyped-call]

"""What a person sees while a run goes on."""

import sys
import time
from typing import TextIO

from vila_mc.observe.record import StepRecord, ValidationRecord


class StepPrinter:
    """Prints steps as one line each with the expected end, at most one line a second.

    Args:
        total_steps: the last step.
        label: what is being trained, at the start of each line.
        stream: where to print.
    """

    def __init__(self, total_steps: int, label: str, stream: TextIO = sys.stdout) -> None:
        self.total_steps = total_steps
        self.label = label
        self.stream = stream
        self.first_step: int | None = None
        self.started = time.monotonic()
        self.last_printed = 0.0

    def write(self, record: StepRecord) -> None:
        """Report one finished step."""
        now, step = time.monotonic(), record.step
        if self.first_step is None:
            # The first step pays for warming up; the estimate starts after it.
            self.first_step, self.started = step, now
        elif now - self.last_printed < 1.0 and not (step == self.total_steps or record.skipped):
            return
        self.last_printed = now
        line = (
            f"{self._place(step)}  loss {record.loss:.4f}  "
            f"grad {record.grad_norm:.3f}  lr {record.learning_rate:.2e}  "
            f"{1000 * record.samples / record.step_ms:,.0f} samples/s  {record.step_ms:.0f} ms  "
            f"left {self._time_left(step, now)}{'  skipped' * record.skipped}"
        )
        print(line, file=self.stream, flush=True)

    def write_validation(self, record: ValidationRecord) -> None:
        """Report one validation."""
        line = (
            f"{self._place(record.step)}  validation loss {record.validation_loss:.4f}  "
            f"{record.validation_tokens:,} tokens  {record.validation_ms:,.0f} ms"
        )
        print(line, file=self.stream, flush=True)

    def _place(self, step: int) -> str:
        return f"{self.label}  step {step:{len(str(self.total_steps))}d}/{self.total_steps}"

    def close(self) -> None:
        """Nothing: every line is flushed, and the stream is not ours."""

    def _time_left(self, step: int, now: float) -> str:
        done = step - (self.first_step or step)
        if done == 0:
            return "?"
        return clock((now - self.started) / done * (self.total_steps - step))


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

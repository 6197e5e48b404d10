"""What a person sees while a run goes on."""

import sys
import time
from typing import TextIO

from vila_mc.flow import StepResult


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

    def show(self, step: int, result: StepResult, step_seconds: float, samples: int) -> None:
        """Report one finished step.

        Args:
            step: number of the step, from 1.
            result: its figures.
            step_seconds: how long it took.
            samples: samples in its global batch.
        """
        now = time.monotonic()
        if self.first_step is None:
            # The first step pays for warming up; the estimate starts after it.
            self.first_step, self.started = step, now
        elif now - self.last_printed < 1.0 and step != self.total_steps:
            return
        self.last_printed = now
        width = len(str(self.total_steps))
        line = (
            f"{self.label}  step {step:{width}d}/{self.total_steps}  loss {result.loss:.4f}  "
            f"grad {result.grad_norm:.3f}  lr {result.learning_rate:.2e}  "
            f"{samples / step_seconds:,.0f} samples/s  {1000 * step_seconds:.0f} ms  "
            f"left {self._time_left(step, now)}"
        )
        print(line, file=self.stream, flush=True)

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

"""What a person sees while a run goes on."""

import sys
import time
from typing import TextIO

from vila_mc.errors import printable
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord


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
        self.unit = "rank"

    def start(self, record: StartRecord) -> None:
        """Ranks are GPUs, or not."""
        self.unit = "rank" if record.device == "cpu" else "gpu"

    def write(self, record: StepRecord) -> None:
        """Report one finished step."""
        now, step = time.monotonic(), record.step
        if self.first_step is None:
            # The first step pays for warming up; the estimate starts after it.
            self.first_step, self.started = step, now
        elif now - self.last_printed < 1.0 and not (step == self.total_steps or record.skipped):
            return
        self.last_printed = now
        utilisation = "" if record.mfu is None else f"  {100 * record.mfu:.1f} % MFU"
        line = (
            f"{self._place(step)}  loss {record.loss:.4f}  "
            f"grad {record.grad_norm:.3f}  lr {record.learning_rate:.2e}  "
            f"{1000 * record.samples / record.step_ms:,.0f} samples/s  "
            f"{record.tokens_per_second_per_rank:,.0f} tok/s/{self.unit}  "
            f"{record.images_per_second:,.0f} images/s  "
            f"{_flops(record.tflops_per_rank)}/{self.unit}{utilisation}  "
            f"{record.step_ms:.0f} ms  data {100 * record.data_ms / record.step_ms:.0f} %  "
            f"{record.peak_memory_gib:.1f} GiB  "
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

    def write_event(self, event: Event) -> None:
        """Report what looks wrong, at once."""
        line = f"alarm: step {event.step:,}: {printable(event.message)}"
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


def _flops(tera: float) -> str:
    """FLOP/s, in the prefix that suits a GPU or a small model on a CPU."""
    return f"{tera:.3g} TFLOP/s" if tera >= 0.1 else f"{1000 * tera:.3g} GFLOP/s"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

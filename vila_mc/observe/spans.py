"""What one rank does in a step, as spans of time.

On a GPU the marks are CUDA events, so that a span is the time that the GPU took; on a CPU they are
readings of ``time.perf_counter``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a rank did."""

    name: str
    start: float
    """Seconds since the step began."""
    end: float
    about: dict[str, Any]
    """What else is known of it."""


class Spans:
    """Takes the marks of a step; between steps it takes none.

    It is also what Megatron-Core calls its ``timers``, so that its schedules, its reductions and
    its optimizer tell of themselves.

    Args:
        device: whose time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._is_running = False
        self._began: Any = None
        self.began_at = 0.0
        """When the step began, by ``time.perf_counter``."""
        self._taken: list[tuple[str, Any, Any, dict[str, Any]]] = []
        self._timers: dict[str, _Timer] = {}

    def begin(self) -> None:
        """A step begins."""
        self._taken.clear()
        self._is_running, self.began_at = True, time.perf_counter()
        self._began = self.mark()

    def end(self) -> tuple[float, list[Span]]:
        """The step is over, on a GPU when all of its work is done.

        Returns:
            its seconds; what was done in it, in the order in which it ended.
        """
        end = self.mark()
        self._is_running = False
        if self._is_gpu:
            end.synchronize()
        spans = [
            Span(name, self._since(first), self._since(last), about)
            for name, first, last, about in self._taken
        ]
        return self._since(end), spans

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        """Time what is done within."""
        first = self.mark()
        yield
        self.take(name, first, **about)

    def take(self, name: str, first: Any, **about: Any) -> None:
        """A span from ``first``, a mark, to now."""
        if first is not None and self._is_running:
            self._taken.append((name, first, self.mark(), about))

    def mark(self) -> Any:
        """Now; on a GPU the moment when it has done what it was asked for so far."""
        if not self._is_running:
            return None
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return event

    def __call__(self, name: str, log_level: int = 0) -> "_Timer":
        """Megatron-Core's timer of this name."""
        if name not in self._timers:
            self._timers[name] = _Timer(self, name)
        return self._timers[name]

    def _since(self, mark: Any) -> float:
        """Seconds from the beginning of the step."""
        if self._is_gpu:
            return float(self._began.elapsed_time(mark)) / 1000
        return float(mark - self._began)


class _Timer:
    """What Megatron-Core starts and stops."""

    def __init__(self, spans: Spans, name: str) -> None:
        self._spans, self._name = spans, name
        self._first: Any = None

    def start(self, barrier: bool = False) -> None:
        """Without the barrier: it would change what is measured."""
        self._first = self._spans.mark()

    def stop(self, barrier: bool = False) -> None:
        """Since its start."""
        self._spans.take(self._name, self._first)

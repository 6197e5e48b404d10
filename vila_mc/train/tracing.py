"""Steps that a person wants to see: a trace of all ranks, and torch's profile of each."""

import functools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import get_schedule_table

from vila_mc.checkpoint.disk import on_first_rank
from vila_mc.config.run import RunConfig
from vila_mc.files import write_whole
from vila_mc.observe.spans import Span, Spans
from vila_mc.observe.trace import Message, Pass, RankTrace, TracedStep, trace_of
from vila_mc.parallel.clocks import clock_offset
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.megatron_patches import TRACED_CALLS
from vila_mc.patch import owner_and_name
from vila_mc.train.announce import announce, warn

PROFILE_NAME = "profile"
_COMMUNICATE = "_communicate"


class Tracing:
    """Traces ``train.trace_steps`` and profiles ``train.profile_steps``.

    Every rank must call its methods together.

    Args:
        config: the whole configuration.
        ranks: this rank and its groups.
        spans: what takes the time of a step.
        after_step: the step that the run goes on after.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, spans: Spans, after_step: int = 0) -> None:
        self._config, self._ranks, self._spans = config, ranks, spans
        self._steps: list[TracedStep] = []
        self._clock = (0.0, 0.0)
        self._profiler: Any = None
        train = config.train
        todo = range(after_step + 1, train.steps + 1)
        for option, steps in (
            ("trace_steps", train.trace_steps),
            ("profile_steps", train.profile_steps),
        ):
            if steps and not any(step in todo for step in _range(steps)):
                first, last = steps
                warn(
                    ranks,
                    f"train.{option} is [{first}, {last}], and this run has steps {todo.start:,} "
                    f"to {train.steps:,}: nothing will be written",
                )

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """What is done within is this step."""
        train = self._config.train
        if step in _range(train.profile_steps) and self._profiler is None:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if step not in _range(train.trace_steps):
            yield
            return
        if not self._steps:
            self._clock = clock_offset(self._ranks, time.perf_counter)
        with TRACED_CALLS.applied(*map(self._traced, TRACED_CALLS.targets)):
            yield

    def take(self, step: int, microbatches: int, seconds: float, spans: list[Span]) -> None:
        """A step is over; the last one is followed by its file."""
        train = self._config.train
        if step in _range(train.trace_steps):
            began = self._spans.began_at
            order = passes_in_order(self._config, microbatches)
            self._steps.append(TracedStep(step, began, seconds, spans, *order))
        if step == max(_range(train.trace_steps), default=0):
            self._write_trace()
        if step == max(_range(train.profile_steps), default=0):
            self._write_profile()

    def close(self) -> None:
        """Write what there is of steps that were not all done; only after a last step."""
        if self._steps:
            self._write_trace()
        if self._profiler is not None:
            self._write_profile()

    def _write_trace(self) -> None:
        ranks, at = self._ranks, self._ranks.at
        place = f"tensor {at.tensor}, pipeline {at.pipeline}, data {at.data}"
        name = f"rank {ranks.rank}: {place} ({socket.gethostname()})"
        steps, self._steps = self._steps, []
        mine = RankTrace(ranks.rank, name, *self._clock, steps)
        everyone: list[RankTrace] | None = (
            [mine] * ranks.layout.world_size() if ranks.is_first() else None
        )
        dist.gather_object(mine, everyone)
        first, last = steps[0].step, steps[-1].step
        path = self._config.train.output / f"trace-{first}-{last}.json"

        def write() -> None:
            write_whole(path, json.dumps(trace_of(everyone or [])))

        on_first_rank(ranks, write, path.parent)
        announce(ranks, f"wrote {path}, a trace of steps {first} to {last}: see ui.perfetto.dev")

    def _write_profile(self) -> None:
        self._profiler.stop()
        folder = self._config.train.output / PROFILE_NAME
        folder.mkdir(exist_ok=True)
        self._profiler.export_chrome_trace(str(folder / f"rank-{self._ranks.rank:05d}.json"))
        self._profiler = None
        announce(self._ranks, f"wrote {folder}, torch's profile of each rank")

    def _traced(self, target: str) -> Callable[..., Any]:
        """What stands for a function of ``TRACED_CALLS``: the same, and a span."""
        original: Callable[..., Any] = getattr(*owner_and_name(target))
        if target.endswith(_COMMUNICATE):
            return _traced_messages(original, self._spans)
        return _traced_collective(original, self._spans)


def _range(steps: tuple[int, ...]) -> range:
    return range(steps[0], steps[1] + 1) if steps else range(0)


def passes_in_order(config: RunConfig, microbatches: int) -> tuple[list[Pass], list[Pass]]:
    """What the forward and the backward passes of a step are about, in a rank's order."""
    chunks, group = config.parallel.virtual, config.parallel.pipeline
    if chunks == 1:
        order: list[Pass] = [(number, 0) for number in range(microbatches)]
        return order, order
    table = get_schedule_table(microbatches, chunks, group)
    return table, [(number, chunks - 1 - chunk) for number, chunk in table]


def _traced_collective(original: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    @functools.wraps(original)
    def traced(*tensors: Any, **options: Any) -> Any:
        first = spans.mark()
        work = original(*tensors, **options)
        group, largest = options.get("group"), max(map(_bytes_of, tensors), default=0)
        spans.take(
            "collective",
            first,
            op=original.__name__,
            bytes=largest,
            ranks=dist.get_world_size(group),
            waits=not options.get("async_op", False),
        )
        return work

    return traced


def _bytes_of(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _traced_messages(original: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    def traced(communicator: Any, **given: Any) -> Any:
        after, before = communicator.next_rank, communicator.prev_rank
        sends = [
            Message(peer, direction)
            for name, peer, direction in (
                ("tensor_send_next", after, "forward"),
                ("tensor_send_prev", before, "backward"),
            )
            if given[name] is not None
        ]
        receives = {
            name: Message(peer, direction)
            for name, peer, direction in (
                ("recv_prev", before, "forward"),
                ("recv_next", after, "backward"),
            )
            if given[name]
        }
        first = spans.mark()
        *tensors, handles = original(communicator, **given)
        if given.get("wait_on_reqs", True):
            spans.take("message", first, sends=sends, receives=list(receives.values()))
            return *tensors, handles
        if sends:
            spans.take("message", first, sends=sends, receives=[])
        waited = {
            name: _Waited(handle, spans, receives[name]) if name in receives else handle
            for name, handle in handles.items()
        }
        return *tensors, waited

    return traced


class _Waited:
    """A message under way; who waits for it receives it."""

    def __init__(self, handle: Any, spans: Spans, message: Message) -> None:
        self._handle, self._spans, self._message = handle, spans, message

    def wait(self) -> Any:
        """The handle's own."""
        first = self._spans.mark()
        done = self._handle.wait()
        self._spans.take("message", first, sends=[], receives=[self._message])
        return done

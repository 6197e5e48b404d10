"""Worker processes that make microbatches, in the memory where this process reads them.

Requests go to all workers through one pipe, which hands each to the first that is free; what is
requested stands in the slot that it is to fill. Each worker answers through a pipe of its own, in a
few bytes: where in the slot the tensors are, and what the microbatch holds besides them. Neither
side can block the other for good: all requests under way fit into their pipe, so that this process
never waits to write, and a worker that waits to write is heard when the next microbatch is taken.
"""

import os
import pickle
import signal
import struct
import traceback
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vila_mc.data.batches.slots import Empty, Placing, Slots
from vila_mc.errors import SetupError, VilaError
from vila_mc.flow import Microbatch
from vila_mc.processes import fork_child, usual_cause

MOST_UNDER_WAY = 1024
"""Requests that fit into the smallest pipe that Linux makes, of one page."""

_REQUEST = struct.Struct("<i")
"""The slot that a request stands in."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """A worker process as its parent sees it."""

    number: int
    pid: int
    answers: Connection


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where in its slot a tensor is."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    def tensor(self, memory: np.ndarray) -> Tensor:
        """The tensor, in ``memory`` and not copied."""
        dtype = np.dtype(self.dtype)
        size = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        placed = memory[self.offset : self.offset + size].view(dtype)
        return torch.from_numpy(placed.reshape(self.shape))


@dataclass(frozen=True, slots=True)
class _Answer:
    """A microbatch whose tensors are in a slot."""

    used: int
    """Bytes of the slot that hold something."""
    content: dict[str, Any]
    """The fields of the microbatch, with ``_Placed`` for tensors."""

    @staticmethod
    def of(batch: Microbatch, memory: np.ndarray, used: int) -> "_Answer":
        """What tells the parent of a microbatch that lies in ``memory``."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        content = {
            name: _placed(value, memory) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return _Answer(used, content)

    def microbatch(self, memory: np.ndarray) -> Microbatch:
        """The microbatch, its tensors in ``memory``."""
        values: dict[str, Any] = {
            name: value.tensor(memory) if isinstance(value, _Placed) else value
            for name, value in self.content.items()
        }
        return Microbatch(**values)


def _placed(tensor: Tensor, memory: np.ndarray) -> _Placed:
    array = tensor.numpy()
    offset = array.ctypes.data - memory.ctypes.data if array.size else 0
    assert 0 <= offset <= len(memory) - array.nbytes, "a tensor is not in its slot"
    return _Placed(offset, array.shape, array.dtype.str)


class Workers:
    """Processes forked here and now, which make the microbatches that they are asked for.

    Args:
        make: makes the microbatch of a request, all its tensors by the function it is given; runs
            in the workers.
        count: how many.
        slots: one for each request under way, and those lent on top; at most ``MOST_UNDER_WAY``
            under way.
    """

    def __init__(self, make: Callable[[Any, Empty], Microbatch], count: int, slots: Slots) -> None:
        self._count, self._slots = count, slots
        self._answered: dict[int, _Answer | Exception] = {}
        self._unwanted: set[int] = set()
        requests, self._requests = os.pipe()
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end, self._workers, self._requests)
        for number in range(count):
            answers, answers_there = Pipe(duplex=False)
            pid = fork_child(partial(_work, make, slots, requests, answers_there))
            answers_there.close()  # so that a worker's death ends its answers
            self._workers.append(_Worker(number, pid, answers))
        os.close(requests)

    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [worker.pid for worker in self._workers]

    def request(self, request: Any) -> int:
        """Ask for a microbatch.

        Returns:
            the slot that it will be in; ``take`` wants it.

        Raises:
            SetupError: a worker died.
        """
        while not self._slots.has_free():
            assert self._unwanted, "more requests than slots"
            self._listen()
        slot = self._slots.take()
        written = pickle.dumps(request)
        self._slots.view(slot)[: len(written)] = np.frombuffer(written, np.uint8)
        with suppress(BrokenPipeError):  # all are dead: said where somebody waits for them
            os.write(self._requests, _REQUEST.pack(slot))
        return slot

    def take(self, slot: int) -> Microbatch:
        """The microbatch that was asked for, once it is there; its slot is free when it has gone.

        Raises:
            DataError: an image no longer decodes, and that is to stop the run.
            SetupError: a worker died.
        """
        while slot not in self._answered:
            self._listen()
        answer = self._answered.pop(slot)
        if isinstance(answer, Exception):
            self._slots.give_back(slot)
            raise answer
        return answer.microbatch(self._slots.lend(slot, answer.used))

    def drop(self, slots: Iterable[int]) -> None:
        """Say that nobody will take what was asked for."""
        for slot in slots:
            self._unwanted.add(slot)
            if slot in self._answered:
                self._settle(slot, self._answered.pop(slot))

    def close(self) -> None:
        """Kill the workers, which keep nothing; what was taken from them stays."""
        self._end()

    def _listen(self) -> None:
        """Wait until some worker answers, and note what has come."""
        assert self._workers, "the workers have ended"
        by_answers: dict[Any, _Worker] = {worker.answers: worker for worker in self._workers}
        for ready in wait(by_answers):
            worker = by_answers[ready]
            try:
                slot, answer = worker.answers.recv()  # our own child's
            except (EOFError, OSError):  # at the end of an answer, or in the middle
                raise self._death_of(worker) from None
            self._settle(slot, answer)

    def _settle(self, slot: int, answer: _Answer | Exception) -> None:
        if slot in self._unwanted:
            self._unwanted.remove(slot)
            self._slots.give_back(slot)
        else:
            self._answered[slot] = answer

    def _death_of(self, worker: _Worker) -> SetupError:
        self._workers.remove(worker)
        code = _wait_for(worker)
        self.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        what = f"worker process {worker.number} of data.workers {self._count} {how}"
        if -code == signal.SIGBUS:
            return SetupError(
                f"{what}; most often {usual_cause(-code)}. Look at the datasets of data.blend "
                "(vila-mc inspect verify)."
            )
        return SetupError(
            f"{what}; most often memory ran out. Lower data.workers or train.micro_batch, or use a "
            "machine with more memory."
        )


def _work(
    make: Callable[[Any, Empty], Microbatch], slots: Slots, requests: int, answers: Connection
) -> None:
    """The whole work of a worker process."""
    while notice := os.read(requests, _REQUEST.size):
        (slot,) = _REQUEST.unpack(notice)
        memory = slots.view(slot)
        placing = Placing(memory)
        answer: _Answer | Exception
        try:
            batch = make(pickle.loads(memory), placing.empty)  # our own parent's request
            answer = _Answer.of(batch, memory, placing.used)
        except VilaError as error:
            answer = error
        except Exception:
            answer = RuntimeError(f"reading ahead failed:\n{traceback.format_exc()}")
        answers.send((slot, answer))


def _end(workers: list[_Worker], requests: int) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    while workers:
        _wait_for(workers.pop())
    os.close(requests)


def _wait_for(worker: _Worker) -> int:
    """The exit code of a worker that has ended or is about to; negative for a signal."""
    worker.answers.close()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
    except ChildProcessError:  # somebody has waited for any child
        return 1

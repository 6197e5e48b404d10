"""Start the ranks of this machine, watch them, and end with one honest exit code.

``torchrun tools/train.py ...`` works too. This adds what a person at a terminal wants: Ctrl-C lets
every rank finish its step and save, a rank's error is one line, not one traceback per rank, and a
run on one machine opens no port that another machine could reach.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from vila_mc.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, say
from vila_mc.processes import (
    STORE_FILE,
    STORE_LISTENER,
    leave_closed_terminal,
    listened_stop_signals,
)
from vila_mc.train.rank import LAUNCHED_BY_US
from vila_mc.train.rank_status import STATUS_DIRECTORY, read_ending, read_heartbeat
from vila_mc.train.rendezvous import Meeting
from vila_mc.train.verdict import RankEnd, cause_of

_GRACE_SECONDS = 30.0
"""How long ranks may take to end after one of them failed."""
_LOOK_SECONDS = 0.05
_ONE_REQUEST_SECONDS = 1.0
"""Signals that come within this time are one request: a terminal and a wrapper both send it."""


def launch(command: Sequence[str], *, ranks: int, meeting: Meeting | None = None) -> int:
    """Run ``python COMMAND...`` once per rank and wait.

    Args:
        command: script and its arguments.
        ranks: ranks on this machine.
        meeting: what the machines of the run agreed on; None for one machine alone.

    Returns:
        0, 130 if the run was stopped and saved, 2 for a user's mistake, 1 for a rank that died.
    """
    with tempfile.TemporaryDirectory(prefix="vila_mc-") as name, _ForwardStop() as forward:
        directory = Path(name)
        processes = _Ranks(command, ranks, meeting, directory)
        try:
            if meeting is not None and meeting.listener is not None:
                meeting.listener.close()  # rank 0 has it
            forward.to(processes)
            ends = processes.wait()
        finally:
            processes.kill()
        if forward.was_cut_short and any(end.is_failure() for end in ends):
            return EXIT_INTERRUPTED
        return _explain(ends, was_stopped=forward.was_used, other_machines=meeting is not None)


class _Ranks:
    """The processes of this machine's ranks.

    Args:
        command: script and its arguments.
        ranks: how many to start.
        meeting: what the machines agreed on, or None.
        directory: where they write their status, and the store of one machine lies.
    """

    def __init__(
        self, command: Sequence[str], ranks: int, meeting: Meeting | None, directory: Path
    ) -> None:
        first = meeting.machine * ranks if meeting else 0
        world_size = ranks * (meeting.machines if meeting else 1)
        self._directory = directory
        self._ends: dict[int, RankEnd] = {}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        for local_rank in range(ranks):
            rank = first + local_rank
            environment = {
                **_common_environment(meeting, directory),
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(ranks),
            }
            inherited = []
            if rank == 0 and meeting is not None and meeting.listener is not None:
                inherited = [meeting.listener.fileno()]
                environment[STORE_LISTENER] = str(inherited[0])
            self._running[rank] = subprocess.Popen(
                [sys.executable, *command], env=environment, pass_fds=inherited
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every rank that runs."""
        for process in self._running.values():
            process.send_signal(number)

    def wait(self) -> list[RankEnd]:
        """How every rank ended. When one fails, the others are ended as well."""
        failed_at: float | None = None
        while self._running:
            self._collect(failed_at)
            if failed_at is None and any(end.is_failure() for end in self._ends.values()):
                failed_at = time.monotonic()
                self._end_stopped()
                self.send(signal.SIGTERM)
            elif failed_at is not None and time.monotonic() > failed_at + _GRACE_SECONDS:
                self.send(signal.SIGKILL)
            if self._running:
                time.sleep(_LOOK_SECONDS)
        return [self._ends[rank] for rank in sorted(self._ends)]

    def kill(self) -> None:
        """End what still runs."""
        self.send(signal.SIGKILL)
        for process in self._running.values():
            process.wait()

    def _collect(self, failed_at: float | None) -> None:
        for rank, process in list(self._running.items()):
            if process.poll() is not None:
                self._note(rank, process, failed_at)

    def _end_stopped(self) -> None:
        """A process that is stopped cannot end itself, nor is anything left for it to do."""
        for rank, process in list(self._running.items()):
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                process.kill()
                process.wait()
                self._note(rank, process, time.monotonic(), was_frozen=True)

    def _note(
        self,
        rank: int,
        process: subprocess.Popen[bytes],
        failed_at: float | None,
        was_frozen: bool = False,
    ) -> None:
        """Remember how a rank ended."""
        del self._running[rank]
        now = time.monotonic()
        ours = {-signal.SIGTERM}
        if was_frozen or (failed_at is not None and now > failed_at + _GRACE_SECONDS):
            ours.add(-signal.SIGKILL)
        self._ends[rank] = RankEnd(
            rank=rank,
            exit_code=process.returncode,
            time=now,
            was_ended=failed_at is not None and process.returncode in ours,
            was_frozen=was_frozen,
            heartbeat=read_heartbeat(self._directory, rank),
            ending=read_ending(self._directory, rank),
        )


def _common_environment(meeting: Meeting | None, directory: Path) -> Mapping[str, str]:
    """What every rank of this machine finds in its environment."""
    environment = {
        # Lets sequence-parallel communication start before the matrix product that hides it.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        LAUNCHED_BY_US: str(os.getpid()),
        STATUS_DIRECTORY: str(directory),
    }
    if meeting is None:
        return environment | {STORE_FILE: str(directory / "store")}
    address = {"MASTER_ADDR": meeting.address, "MASTER_PORT": str(meeting.port)}
    return environment | address | {STORE_LISTENER: "-1"}


class _ForwardStop:
    """While active, passes requests to stop on to the ranks; a second Ctrl-C ends them at once.

    No other signal does: a scheduler warns with one and tells with another, and what a run saves
    between the two must not be lost.
    """

    def __init__(self) -> None:
        self.was_used = self.was_cut_short = False
        self._first_interrupt = math.inf
        self._ranks: _Ranks | None = None

    def __enter__(self) -> "_ForwardStop":
        self.previous = {
            number: signal.signal(number, self._forward) for number in listened_stop_signals()
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def to(self, ranks: "_Ranks") -> None:
        """Send requests to these ranks, also one that came before."""
        self._ranks = ranks
        if self.was_used:
            ranks.send(signal.SIGKILL if self.was_cut_short else signal.SIGINT)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
        now = time.monotonic()
        if not self.was_used:
            say(
                "stopping: every rank finishes its step or validation, and saves"
                + "; Ctrl-C again ends at once, without" * (number == signal.SIGINT),
                to_stderr=True,
            )
        self.was_used = True
        if number == signal.SIGINT:
            self._first_interrupt = min(self._first_interrupt, now)
            if now > self._first_interrupt + _ONE_REQUEST_SECONDS:
                self._end_at_once()
                return
        if self._ranks is not None:
            self._ranks.send(signal.SIGINT)

    def _end_at_once(self) -> None:
        if not self.was_cut_short:
            print(
                "ended at once; checkpoints are whole: the same command goes on from the newest "
                "one, if there is any",
                file=sys.stderr,
                flush=True,
            )
        self.was_cut_short = True
        if self._ranks is not None:
            self._ranks.send(signal.SIGKILL)


def _explain(ends: Sequence[RankEnd], *, was_stopped: bool, other_machines: bool) -> int:
    """One line about what ended the run, and the exit code that fits it."""
    exit_codes = {end.exit_code for end in ends}
    if exit_codes == {EXIT_OK}:
        return EXIT_OK
    if EXIT_INTERRUPTED in exit_codes:
        print("stopped and saved; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    if was_stopped:
        print("stopped before the first step; nothing was lost", file=sys.stderr)
        return EXIT_INTERRUPTED
    # A mistake that only one rank can see ends the others, sometimes before it is reported.
    for end in ends:
        if end.exit_code == EXIT_USER_ERROR:
            if end.ending is not None:
                say(f"error: {end.ending.message}", to_stderr=True)
            return EXIT_USER_ERROR
    say(
        f"error: {cause_of(ends, other_machines)}; the other ranks were stopped. Checkpoints are "
        "whole: the same command goes on from the newest one.",
        to_stderr=True,
    )
    return EXIT_FAULT

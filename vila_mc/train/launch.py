"""Start the ranks of this machine, watch them, and end with one honest exit code.

``torchrun tools/train.py ...`` works too. This adds what a person at a terminal wants: Ctrl-C lets
every rank finish its step and save, a rank's error is one line, not one traceback per rank, and a
run on one machine opens no port that another machine could reach.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from vila_mc.errors import ExitCode, say
from vila_mc.observe.history import RESTART
from vila_mc.processes import STORE_FILE, STORE_LISTENER
from vila_mc.train.rank import LAUNCHED_BY_US
from vila_mc.train.rank_status import STATUS_DIRECTORY, read_ending, read_heartbeat
from vila_mc.train.rendezvous import Meeting
from vila_mc.train.restarts import Outcome
from vila_mc.train.stacks import ask_for_stacks, read_stacks
from vila_mc.train.stop_signals import StopSignals
from vila_mc.train.verdict import RankEnd, Verdict, verdict_of

_GRACE_SECONDS = 30.0
"""How long ranks may take to end after one of them failed."""
_LOOK_SECONDS = 0.05


def launch(
    command: Sequence[str],
    *,
    ranks: int,
    stop: StopSignals,
    meeting: Meeting | None = None,
    restart: int = 0,
) -> Outcome:
    """Run ``python COMMAND...`` once per rank and wait.

    Args:
        command: script and its arguments.
        ranks: ranks on this machine.
        stop: requests to stop, which are passed on, and what is said of them.
        meeting: what the machines of the run agreed on; None for one machine alone.
        restart: how often the run was started again by itself before.

    Returns:
        the exit code: OK, INTERRUPTED or REQUEUE if the run was stopped and saved, USER_ERROR for a
        mistake, FAULT for a rank that died or stood still; and why.
    """
    with tempfile.TemporaryDirectory(prefix="vila_mc-") as name:
        directory = Path(name)
        processes = _Ranks(command, ranks, meeting, directory, restart)
        try:
            if meeting is not None and meeting.listener is not None:
                meeting.listener.close()  # rank 0 has it
            with stop.passed_to(processes):
                ends = processes.wait()
        finally:
            processes.kill()
        if stop.was_cut_short and any(end.is_failure() for end in ends):
            return Outcome(ExitCode.INTERRUPTED)
        return _explain(ends, stop=stop, other_machines=meeting is not None, directory=directory)


class _Ranks:
    """The processes of this machine's ranks.

    Args:
        command: script and its arguments.
        ranks: how many to start.
        meeting: what the machines agreed on, or None.
        directory: where they write their status, and the store of one machine lies.
        restart: how often the run was started again before.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        meeting: Meeting | None,
        directory: Path,
        restart: int,
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
                RESTART: str(restart),
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
                [sys.executable, *command],
                env=environment,
                pass_fds=inherited,
                stdin=None if rank == 0 else subprocess.DEVNULL,  # one reads what a person types
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
        """A process that is stopped cannot end itself, nor is anything left for it to do but to
        say where it was, as all others do."""
        stopped = [
            (rank, process)
            for rank, process in self._running.items()
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
        ]
        ask_for_stacks(
            self._directory, [(rank, process.pid) for rank, process in self._running.items()]
        )
        for rank, process in stopped:
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


def _explain(
    ends: Sequence[RankEnd], *, stop: StopSignals, other_machines: bool, directory: Path
) -> Outcome:
    """One line about what ended the run, and the exit code that fits it.

    Args:
        ends: how each rank of this machine ended.
        stop: what this launcher was sent, and what is said of it.
        other_machines: whether ranks of other machines take part.
        directory: where ranks have left their stacks.
    """
    exit_codes = {end.exit_code for end in ends}
    if exit_codes == {ExitCode.OK}:
        return Outcome(ExitCode.OK)
    for code in (ExitCode.INTERRUPTED, ExitCode.REQUEUE):
        if code in exit_codes:
            _say_if_any(stop.sayings.stopped)
            return Outcome(code)
    # A mistake that only one rank can see ends the others, sometimes before it is reported.
    for end in ends:
        if end.exit_code == ExitCode.USER_ERROR:
            said = end.ending.message if end.ending is not None else ""
            if said:
                say(f"error: {said}", to_stderr=True)
            is_held = end.ending is not None and end.ending.cause == "held"
            return Outcome(ExitCode.USER_ERROR, said, has_output=not is_held)
    if stop.code is not None and all(map(_had_not_begun, ends)):
        _say_if_any(stop.sayings.before_work)
        return Outcome(stop.code)
    verdict = verdict_of(ends, other_machines)
    if verdict.is_hang:
        _show_stacks(ends, verdict, directory)
    kept = stop.sayings.kept
    left = f" {kept[0].upper()}{kept[1:]}." if kept else ""
    say(f"error: {verdict.cause}; the other ranks were stopped.{left}", to_stderr=True)
    return Outcome(ExitCode.FAULT, verdict.cause)


def _say_if_any(text: str) -> None:
    if text:
        say(text, to_stderr=True)


def _had_not_begun(end: RankEnd) -> bool:
    """Whether a rank ended by a request to stop before it listened, or noticed another's end."""
    by_request = (ExitCode.OK, -signal.SIGINT, -signal.SIGTERM)
    return end.exit_code in by_request or end.noticed_only()


def _show_stacks(ends: Sequence[RankEnd], verdict: Verdict, directory: Path) -> None:
    """Where every rank of this machine was, the one that all waited for first."""
    for end in sorted(ends, key=lambda end: (end.rank != verdict.rank, end.rank)):
        lines = read_stacks(directory, end.rank) or ["it could not say"]
        sign = end.last_sign()
        where = f" in {sign.where()}" if sign else ""
        missing = ", which the others waited for," if end.rank == verdict.rank else ""
        say(f"stacks of rank {end.rank}{missing}{where}:", to_stderr=True)
        say("\n".join(f"  {line}" for line in lines), to_stderr=True)

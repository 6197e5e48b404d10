"""One tiny run after another, and a fault in each every few steps: see tests/soak.sh.

A fault is recovered when the run goes on to a step beyond the newest checkpoint, by itself or by
the same command, and every checkpoint has the bytes of its manifest. A run that gets to its end
must have learnt what an undisturbed one has, bit for bit. Whatever else happens is a fault lost.
"""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.launching import (
    Finished,
    finish,
    kill_all,
    ranks_of,
    steps_done,
    trace_of,
    training,
    wait_until,
    write_recipe,
)
from tests.support.tiny_data import write_dataset
from vila_mc.checkpoint.directories import step_of, whole_checkpoints
from vila_mc.checkpoint.manifest import FileRecord, Manifest
from vila_mc.errors import ExitCode
from vila_mc.observe.history import read_history
from vila_mc.observe.record import StartRecord

NUM_STEPS = 60
"""A fault costs about as many steps as lie between two checkpoints: some ten faults to an end."""
PATIENCE_SECONDS = 900.0
"""Ranks that start on a machine with much else to do take minutes."""
DISK_MIB = 48
MOST_RESTARTS = 3
COMMAND = (
    *(
        "--ranks",
        2,
        "--parallel.pipeline",
        2,
        "--max-restarts",
        MOST_RESTARTS,
        "--train.steps",
        NUM_STEPS,
    ),
    *("--train.save_every", 10, "--train.keep_last", 3, "--train.timeout_minutes", 0.5),
)


class DoneError(Exception):
    """The run got to its end before a fault could be injected."""


class Soak:
    """The run that is disturbed.

    Args:
        recipe: everything but train.output.
        output: on a small disk of its own, where that can be had.
        choose: decides when and what.
    """

    def __init__(self, recipe: Path, output: Path, choose: random.Random) -> None:
        self.recipe, self.output, self.choose = recipe, output, choose
        self._process: subprocess.Popen[str] | None = None
        self._at_the_end = ExitStack()

    def start(self) -> None:
        """Start the command, unless it runs."""
        if self._process is None:
            command = ("--config", self.recipe, *COMMAND, "--train.output", self.output)
            self._process = self._at_the_end.enter_context(training(*command))

    def end(self) -> None:
        """End what runs."""
        self._at_the_end.close()
        self._process = None

    @property
    def process(self) -> subprocess.Popen[str]:
        """The launcher."""
        assert self._process is not None
        return self._process

    def goes_on(self, starts: int) -> None:
        """Wait until it has been started ``starts`` times and makes some steps beyond what is
        saved. Raises DoneError if it is done before, AssertionError if it does not come to it."""
        beyond = self.choose.randint(1, 15)

        def is_there() -> bool:
            if self.process.poll() is not None:
                run = finish(self.process)
                self.end()
                if run.code == ExitCode.OK:
                    raise DoneError
                raise AssertionError(f"it ended with {run.code}: {run.err}")
            begun = self._starts()
            resumed = begun[-1].step if begun else 0
            return len(begun) >= starts and steps_done(self.output) >= resumed + beyond

        try:
            wait_until(is_there, f"start {starts} and {beyond} steps", PATIENCE_SECONDS)
        except AssertionError as late:
            raise AssertionError(f"{late}; it had said: {self._said_so_far()}") from None

    def _said_so_far(self) -> str:
        """End it all, and the end of what it said."""
        ranks = ranks_of(self.process)
        self.process.kill()
        kill_all(ranks)
        out, err = self.process.communicate()
        self.end()
        return f"{out[-1000:]}\n{err[-4000:]}"

    def starts(self) -> int:
        """So far."""
        return len(self._starts())

    def _starts(self) -> list[StartRecord]:
        return [event for event in read_history(self.output) if isinstance(event, StartRecord)]

    def has_used_restarts(self) -> bool:
        """Whether the next one would be kept waiting for long."""
        return self._starts()[-1].restart >= MOST_RESTARTS - 1

    def ended(self, code: ExitCode | int, *said: str) -> None:
        """Wait for the command to end as it should."""
        run: Finished = finish(self.process, PATIENCE_SECONDS)
        self.end()
        if run.code == ExitCode.OK and steps_done(self.output) == NUM_STEPS:
            raise DoneError
        assert run.code == code, f"it ended with {run.code}: {run.err}"
        for text in said:
            assert text in run.err, run.err


def kill_a_rank(soak: Soak) -> None:
    """SIGKILL; the launcher starts the run again."""
    soak.choose.choice(ranks_of(soak.process)).kill()


def stop_a_rank(soak: Soak) -> None:
    """SIGSTOP: a hang."""
    soak.choose.choice(ranks_of(soak.process)).suspend()


def kill_the_launcher(soak: Soak) -> None:
    """SIGKILL; its ranks save and end."""
    ranks = ranks_of(soak.process)
    soak.process.kill()
    wait_until(lambda: not any(map(_runs, ranks)), "the end of the ranks", PATIENCE_SECONDS)
    soak.end()


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def warn_as_a_scheduler(soak: Soak) -> None:
    """SIGUSR1."""
    soak.process.send_signal(signal.SIGUSR1)
    soak.ended(ExitCode.REQUEUE, "stopped and saved")


def press_ctrl_c(soak: Soak) -> None:
    """SIGINT."""
    soak.process.send_signal(signal.SIGINT)
    soak.ended(ExitCode.INTERRUPTED, "stopped and saved")


def fill_the_disk(soak: Soak) -> None:
    """Until the next save has no room."""
    filler = soak.output.parent / "filler"
    free = shutil.disk_usage(soak.output).free
    with suppress(OSError):  # a save may have taken the room meanwhile: it is as full then
        filler.write_bytes(b"\0" * max(0, free - 200 * 1024))
    try:
        soak.ended(ExitCode.USER_ERROR, "no space left")
    finally:
        filler.unlink()


def limit_file_sizes(soak: Soak) -> None:
    """As ``ulimit -f`` does; a checkpoint's files are larger."""
    for rank in ranks_of(soak.process):
        rank.rlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
    soak.ended(ExitCode.USER_ERROR, "ulimit -f")


def flip_a_bit(soak: Soak) -> None:
    """In the newest checkpoint: the next start names it and refuses; an older one does."""
    press_ctrl_c(soak)
    newest = whole_checkpoints(soak.output)[-1]
    file = soak.choose.choice(sorted(newest.glob("*.distcp")))
    content = bytearray(file.read_bytes())
    content[soak.choose.randrange(len(content))] ^= 1 << soak.choose.randrange(8)
    file.write_bytes(content)
    soak.start()
    soak.ended(ExitCode.USER_ERROR, newest.name)
    shutil.rmtree(newest)


FAULTS: dict[str, Callable[[Soak], None]] = {
    "kill a rank": kill_a_rank,
    "stop a rank": stop_a_rank,
    "kill the launcher": kill_the_launcher,
    "scheduler's notice": warn_as_a_scheduler,
    "Ctrl-C": press_ctrl_c,
    "full disk": fill_the_disk,
    "file size limit": limit_file_sizes,
    "flipped bit": flip_a_bit,
}


def main() -> int:
    """Disturb runs until the time is over; 1 if something was lost."""
    parser = argparse.ArgumentParser(prog="tests/soak.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FAULTS), help="faults, separated by commas")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(unknown)}. There are: {', '.join(FAULTS)}.")
    ends = time.monotonic() + 60 * options.minutes
    choose, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory(prefix="soak-", delete=False) as name:
        folder = Path(name)
    recipe = write_recipe(folder / "recipe.yaml", *write_dataset(folder))
    reference = folder / "undisturbed"
    with training("--config", recipe, *COMMAND, "--train.output", reference) as process:
        run = finish(process, PATIENCE_SECONDS)
    assert run.code == ExitCode.OK, run.err
    rounds = 0
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it early; the table is of what was done
        while time.monotonic() < ends:
            rounds += 1
            with _disk(folder / f"round-{rounds}", "full disk" in names) as disk:
                possible = [one for one in names if one != "full disk" or disk.is_mount()]
                soak = Soak(recipe, disk / "out", choose)
                if not _round(soak, possible, ends, tally, reference):
                    kept = shutil.copytree(disk, folder / f"lost-{rounds}")
                    print(f"what was left is in {kept}", flush=True)
    print(tally.table(rounds))
    if not tally.lost.total():
        shutil.rmtree(folder)
    return int(tally.lost.total() > 0)


class Tally:
    """What became of the faults."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.recovered: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.finished = 0
        """Runs that got to their end, and had learnt the same."""

    def table(self, rounds: int) -> str:
        """For people."""
        rows: list[tuple[str, ...]] = [("fault", "injected", "recovered", "lost")]
        rows += [
            (name, *(str(count[name]) for count in (self.injected, self.recovered, self.lost)))
            for name in (*self.injected, *(self.lost.keys() - self.injected.keys()))
        ]
        counts = (self.injected, self.recovered, self.lost)
        rows.append(("all", *(str(count.total()) for count in counts)))
        lines = [f"| {row[0]:20} | {row[1]:>8} | {row[2]:>9} | {row[3]:>4} |" for row in rows]
        lines.insert(1, f"|{'-' * 22}|{'-' * 9}:|{'-' * 10}:|{'-' * 5}:|")
        lines.append(f"{rounds} runs, {self.finished} to their end, where all had learnt the same")
        return "\n".join(lines)


def _round(soak: Soak, names: list[str], ends: float, tally: Tally, reference: Path) -> bool:
    """Disturb one run until it is done or the time is over; whether nothing was lost."""
    pending, before = "no fault", 0
    try:
        soak.start()
        soak.goes_on(1)
        while time.monotonic() < ends:
            pending = soak.choose.choice(names)
            before = tally.injected[pending]
            if soak.has_used_restarts():
                starts = soak.starts()
                warn_as_a_scheduler(soak)
                soak.start()
                soak.goes_on(starts + 1)
            starts = soak.starts()
            FAULTS[pending](soak)
            tally.injected[pending] += 1
            soak.start()
            soak.goes_on(starts + 1)
            _require_intact(soak.output)
            tally.recovered[pending] += 1
            print(f"recovered: {pending}, at step {steps_done(soak.output)}", flush=True)
    except DoneError:
        tally.recovered[pending] += tally.injected[pending] - before  # it went on to its end
        is_same = _bytes(soak.output) == _bytes(reference)
        if is_same and trace_of(soak.output) == trace_of(reference):
            tally.finished += 1
            return True
        tally.lost["what was learnt"] += 1
        return False
    except Exception as error:
        tally.injected[pending] += tally.injected[pending] == before
        tally.lost[pending] += 1
        print(f"lost: {pending}: {error}", flush=True)
        return False
    finally:
        soak.end()
    return True


def _require_intact(output: Path) -> None:
    for checkpoint in whole_checkpoints(output):
        for name, record in Manifest.read(checkpoint).files.items():
            assert FileRecord.of(checkpoint / name) == record, f"{checkpoint / name} has changed"


def _bytes(output: Path) -> dict[str, str]:
    """Checksums of all that training computes, of the last step."""
    last = whole_checkpoints(output)[-1]
    assert step_of(last) == NUM_STEPS
    files = Manifest.read(last).files
    return {name: record.sha256 for name, record in files.items() if name.endswith(".distcp")}


@contextmanager
def _disk(folder: Path, is_wanted: bool) -> Iterator[Path]:
    """A file system of its own that can be filled, where mounting is allowed; else a folder."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = (
        is_wanted
        and shutil.which("mount") is not None
        and subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    )
    if is_wanted and not mounted:
        print("no right to mount a tmpfs: full disks are left out", flush=True)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

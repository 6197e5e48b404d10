"""Steps that a table needs, each done once: arms that begin alike share their beginning.

What decides the outcome of a step is its description; a digest of it names the step's folder, in
which ``done.json`` stands once it is finished. So a table that was stopped goes on, a recipe that
was edited is trained anew, and tables share what they have in common.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from vila_mc.errors import ExitCode, VilaError
from vila_mc.files import write_json

CHECKOUT = Path(__file__).resolve().parents[2]
_LINES_OF_A_FAILURE = 15


class StepFailedError(VilaError):
    """A tool ended with an error."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a tool.

    Two steps of equal descriptions are the same one.
    """

    kind: str
    """What it does, for people and as the beginning of its folder's name."""
    description: dict[str, Any]
    """All that decides what comes out, but for the steps that it needs."""
    arguments: Callable[[Path, Sequence[Path]], list[str]] = field(compare=False, repr=False)
    """From its folder and those of the steps that it needs: the tool and its arguments."""
    needs: tuple["Step", ...] = ()

    def digest(self) -> str:
        """Names it, and all that it needs."""
        of_needs = [step.digest() for step in self.needs]
        text = json.dumps([self.kind, self.description, of_needs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self, output: Path) -> Path:
        """Where it writes."""
        return output / "steps" / f"{self.kind}-{self.digest()}"

    def is_done(self, output: Path) -> bool:
        """Whether it was finished."""
        return (self.folder(output) / "done.json").exists()

    def with_needs(self) -> Iterable["Step"]:
        """It and all that it needs, directly or not."""
        yield self
        for step in self.needs:
            yield from step.with_needs()


class Runner:
    """Does steps, several at a time, each in a process of its own.

    Args:
        output: the folder of all of them.
        at_once: how many run at a time.
        threads: of each process.
        say: takes a line for people.
    """

    def __init__(
        self, output: Path, *, at_once: int, threads: int, say: Callable[[str], object]
    ) -> None:
        self._output, self._at_once, self._threads, self._say = output, at_once, threads, say
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self, wanted: Iterable[Step]) -> None:
        """Do what of ``wanted``, and of what it needs, is not done yet.

        Raises:
            StepFailedError: a tool failed; what ran beside it was stopped, as by Ctrl-C.
            KeyboardInterrupt: Ctrl-C, after the tools have ended.
        """
        steps = {step.digest(): step for one in wanted for step in one.with_needs()}
        todo = {digest: step for digest, step in steps.items() if not step.is_done(self._output)}
        order = TopologicalSorter(
            {
                digest: [need.digest() for need in step.needs if need.digest() in todo]
                for digest, step in todo.items()
            }
        )
        order.prepare()
        self._say(f"{len(steps) - len(todo)} of {len(steps)} steps were done before")
        done, running = len(steps) - len(todo), dict[Future[float], str]()
        with ThreadPoolExecutor(self._at_once) as pool:
            try:
                while order.is_active():
                    for digest in order.get_ready():
                        running[pool.submit(self._do, todo[digest])] = digest
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        digest, done = running.pop(future), done + 1
                        order.done(digest)
                        seconds = future.result()
                        name = todo[digest].folder(self._output).name
                        self._say(f"[{done}/{len(steps)}] {name}  {seconds:.0f} s")
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _do(self, step: Step) -> float:
        """Run its tool to the end; seconds that it took now. Raises StepFailedError."""
        folder, started = step.folder(self._output), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "step.json", step.description)
        tool, *arguments = step.arguments(folder, [one.folder(self._output) for one in step.needs])
        log = folder / "log.txt"
        with open(log, "ab") as file:
            code = self._call([sys.executable, str(CHECKOUT / tool), *arguments], file)
        if code:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()
            last = "\n".join(said[-_LINES_OF_A_FAILURE:])
            raise StepFailedError(
                f"{tool} ended with {ExitCode(code).name if code in set(ExitCode) else code} in "
                f"{folder}. The end of its log.txt:\n{last}"
            )
        seconds = round(time.monotonic() - started, 1)
        write_json(folder / "done.json", {"seconds": seconds})
        return seconds

    def _call(self, command: Sequence[str], log: Any) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": str(self._threads)}
        with self._lock:
            if self._is_stopped:
                return int(ExitCode.INTERRUPTED)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0,  # Ctrl-C comes from here, once
            )
            self._processes.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)

    def _stop(self) -> None:
        """Ask every tool to end, which training does after a save, and start no other."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.send_signal(signal.SIGINT)

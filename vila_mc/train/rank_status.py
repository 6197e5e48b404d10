"""What a rank tells the launcher of its machine: that it lives, where it is, and why it ended.

Each rank writes two small files in a directory of the launcher; times are those of the machine's
monotonic clock, which its processes share. No torch: it must load at once.
"""

import contextlib
import json
import linecache
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from vila_mc.files import partial_path
from vila_mc.train.stacks import keep_traceback

STATUS_DIRECTORY = "VILA_MC_STATUS"
"""Environment variable that tells a rank where to write."""

_BEAT_SECONDS = 1.0
_LONG_SECONDS = 5.0
"""After which a rank that has not moved may be waiting for its GPU."""

Cause = Literal["user", "held", "lost", "fault"]
"""A user's mistake, that of an output which another run holds, the loss of another rank, or
anything else."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Where a rank was at a moment."""

    time: float
    place: str
    """The function of ours that ran."""
    collective: str
    """What it waited for the other ranks in; empty where it did not."""

    def where(self) -> str:
        """For people."""
        return f"{self.collective} of {self.place}" if self.collective else self.place


@dataclass(frozen=True, slots=True)
class Heartbeat(Sign):
    """Written about once a second, for as long as the rank can run Python."""

    since: float
    """When the rank came to where it is."""


@dataclass(frozen=True, slots=True)
class Ending(Sign):
    """Why a rank ended by itself, in its own words."""

    cause: Cause
    message: str


class StatusWriter:
    """Writes the status of this rank, from a thread of its own, for the rest of the process.

    Args:
        directory: the launcher's.
        rank: of this process.
    """

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory, self._rank = directory, rank
        self._watched = threading.get_ident()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def end(self, cause: Cause, message: str, error: BaseException) -> None:
        """Say why this rank ends, and by which error."""
        frames = list(traceback.walk_tb(error.__traceback__))[::-1]
        ending = Ending(time=time.monotonic(), **_whereabouts(frames), cause=cause, message=message)
        _write(_ending_file(self._directory, self._rank), ending)
        keep_traceback(self._directory, self._rank, error)

    def _beat(self) -> None:
        since, was_at = time.monotonic(), None
        while True:
            frame = sys._current_frames().get(self._watched)
            if frame is not None:
                at = (id(frame), frame.f_lasti)
                where = _whereabouts(traceback.walk_stack(frame))
                del frame  # it would keep the tensors of its function
                now = time.monotonic()
                since, was_at = (since, at) if at == was_at else (now, at)
                if not where["collective"] and now - since > _LONG_SECONDS:
                    where["collective"] = collective_on_gpu()
                beat = Heartbeat(time=now, **where, since=since)
                _write(_heartbeat_file(self._directory, self._rank), beat)
            time.sleep(_BEAT_SECONDS)


def read_heartbeat(directory: Path, rank: int) -> Heartbeat | None:
    """The last one; None if the rank died before its first."""
    text = _read(_heartbeat_file(directory, rank))
    return Heartbeat(**json.loads(text)) if text else None


def read_ending(directory: Path, rank: int) -> Ending | None:
    """None if the rank lives, or died without a word."""
    text = _read(_ending_file(directory, rank))
    return Ending(**json.loads(text)) if text else None


def _heartbeat_file(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank}.alive"


def _ending_file(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank}.ended"


def _write(path: Path, status: Sign) -> None:
    """Whole or not at all; a launcher that is gone, with its directory, needs no status."""
    partial = partial_path(path)
    try:
        partial.write_text(json.dumps(asdict(status)))
        os.replace(partial, path)
    except OSError:
        return


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _whereabouts(innermost_first: Iterable[tuple[FrameType, int]]) -> dict[str, str]:
    """The function of ours that runs, and the collective that it waits in, if it does."""
    collective = ""
    for depth, (frame, line) in enumerate(innermost_first):
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_qualname
        if depth == 0 and _waits(frame, line):
            collective = name
        if module == "torch.distributed.distributed_c10d" and not name.startswith("_"):
            collective = name
        if module.startswith("vila_mc."):
            place = f"{module.removeprefix('vila_mc.')}.{name}"
            return {"place": place, "collective": collective}
    return {"place": "its start", "collective": collective}


def _waits(frame: FrameType, line: int) -> bool:
    """Megatron-Core waits for what it has sent for by ``wait()`` of the request itself."""
    is_parallel = str(frame.f_globals.get("__name__")).startswith(("torch.dist", "megatron."))
    return is_parallel and ".wait(" in linecache.getline(frame.f_code.co_filename, line)


def collective_on_gpu() -> str:
    """The oldest collective that NCCL has been given and not finished: ``all_reduce 17 of GROUP``.

    By torch's flight recorder, which knows what Python does not see: a rank that waits for another
    on its GPU is in some harmless call. Empty without a GPU, or where nothing is under way.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    with contextlib.suppress(Exception):  # a private door of torch, which may change
        recorded = json.loads(torch._C._distributed_c10d._dump_nccl_trace_json(True, True))
        first = min(recorded["entries"], key=lambda entry: entry["record_id"])
        name = str(first["profiling_name"]).removeprefix("nccl:")
        number = first["p2p_seq_id"] if first["is_p2p"] else first["collective_seq_id"]
        return f"{name} {number} of {' '.join(map(str, first['process_group']))}"
    return ""

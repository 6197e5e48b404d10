"""Which checkpoints are kept, and whether there is room for those to come."""

import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from vila_mc.checkpoint.best import best_checkpoint
from vila_mc.checkpoint.directories import step_of, whole_checkpoints
from vila_mc.checkpoint.disk import disk_errors_explained
from vila_mc.checkpoint.needed import needed_by
from vila_mc.config.train import TrainConfig
from vila_mc.errors import SetupError, say
from vila_mc.files import partial_path

_OPTIMIZER_BYTES = 12
"""An fp32 copy and two fp32 moments of every trained weight."""
_BYTES_PER_TENSOR = 8 * 2**10
"""Headers in the shards and the entry in the index: 4 KiB where measured."""


def kept_for_good(step: int, train: TrainConfig) -> bool:
    """Whether the checkpoint after ``step`` is never deleted."""
    return train.keep_every is not None and step % train.keep_every == 0


def delete_superseded(train: TrainConfig, *, in_background: bool = False) -> None:
    """Delete what is not to be kept in ``train.output``, and what dead runs left half-written.

    Args:
        train: where checkpoints are and which are kept.
        in_background: return as soon as they are out of sight. Their bytes go in a thread, which
            the process waits for at its end.
    """
    doomed = list(train.output.glob(".step-*.partial"))
    superseded = whole_checkpoints(train.output)[: -train.keep_last]
    best = best_checkpoint(train.output) if train.keep_best else None
    for path in superseded:
        if kept_for_good(step_of(path), train) or path == best:
            continue
        if (adapters := needed_by(path)) is not None:
            if path == superseded[-1]:  # once: older ones have been here before
                say(f"kept {path} beyond train.keep_last, as the base of adapters in {adapters}")
            continue
        # First out of sight, so that a deletion cut short leaves nothing that looks whole.
        hidden = path.rename(partial_path(path))
        if needed_by(path) is None:
            doomed.append(hidden)
        else:  # since a moment ago
            hidden.rename(path)
    if in_background:
        threading.Thread(target=_delete, args=(doomed,)).start()
    else:
        _delete(doomed)


def _delete(directories: Sequence[Path]) -> None:
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


def check_writable(directory: Path) -> None:
    """Create ``directory`` if need be and write to it. Raises SetupError if that fails."""
    with disk_errors_explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        # Without a name: several machines look at once, and a full disk must not keep it.
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0" * 4096)


def checkpoint_bytes(
    num_weights: int, num_trained: int, num_tensors: int, weight_bytes: int
) -> int:
    """What one checkpoint takes on disk, rounded up.

    Args:
        num_weights: parameters that it holds, of the whole model but under adapters.
        num_trained: those that the optimizer keeps a state of.
        num_tensors: tensors they make up, over all ranks.
        weight_bytes: bytes of one weight.
    """
    tensors = num_tensors * 4 * _BYTES_PER_TENSOR
    return num_weights * weight_bytes + num_trained * _OPTIMIZER_BYTES + tensors


def check_room(train: TrainConfig, one_checkpoint: int) -> str | None:
    """Refuse to start when ``train.output`` cannot take the checkpoints to come.

    One more than ``train.keep_last`` exist at a time, because an old one is deleted only when a
    new one is whole.

    Args:
        train: where checkpoints go, how many there will be and which are kept.
        one_checkpoint: bytes of one.

    Returns:
        a warning if there is room now, but not for all that ``train.keep_every`` will keep.

    Raises:
        SetupError: it cannot be written, or there is no room.
    """
    check_writable(train.output)
    here = [step_of(path) for path in whole_checkpoints(train.output)]
    done = here[-1] if here else 0
    to_come = [s for s in range(done + 1, train.steps + 1) if _is_saved(s, train)]
    rolling = [
        step_of(path)
        for path in whole_checkpoints(train.output)
        if not kept_for_good(step_of(path), train) and needed_by(path) is None
    ]
    most = train.keep_last + 1 + train.keep_best
    at_a_time = max(1, most - len(rolling))  # older ones make room only afterwards
    needed = min(len(to_come), at_a_time) * one_checkpoint
    free = shutil.disk_usage(train.output).free
    these = "train.keep_last + 1" + " + train.keep_best" * train.keep_best
    if free < needed:
        raise SetupError(
            f"{train.output} has {_gib(free)} free, but this run needs {_gib(needed)} there: one "
            f"checkpoint takes up to {_gib(one_checkpoint)}, and {these} = {most} "
            "exist at a time. Free some space, lower train.keep_last, or "
            "set train.output to another disk."
        )
    for_good = sum(kept_for_good(step, train) for step in to_come) * one_checkpoint
    if free < needed + for_good:
        return (
            f"{train.output} has {_gib(free)} free, but with those that train.keep_every keeps, "
            f"this run will need {_gib(needed + for_good)} there: free some space as it goes on"
        )
    return None


def _is_saved(step: int, train: TrainConfig) -> bool:
    return step % train.save_every == 0 or step == train.steps


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"

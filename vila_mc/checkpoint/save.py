"""Save the state of a training run, at once or while it trains on.

A checkpoint becomes visible in one rename, when every rank has written its part and its manifest
lists every file with its checksum.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config

from vila_mc.checkpoint.base import Base
from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.checkpoint.disk import lost_output, on_first_rank, raise_on_every_rank
from vila_mc.checkpoint.manifest import FileRecord, Manifest
from vila_mc.checkpoint.retention import delete_superseded
from vila_mc.checkpoint.shard_writer import BackgroundWrite, Written, plan_shards
from vila_mc.checkpoint.state import named, random_state, run_state
from vila_mc.files import new_partial_directory, partial_path, put_in_place
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks


class PendingSave:
    """A checkpoint that is being written; every rank must call every method together.

    Args:
        manifest: what the checkpoint is of; ``manifest.config.train`` says where it goes and which
            older ones are deleted when it is whole.
        ranks: this rank and its groups.
        stages: this rank's stages.
        optimizer: Megatron-Core's optimizer.
        base: what is not written, because it is in the checkpoint that ``manifest.base`` names.
        in_background: write in a process of its own. Training may go on as soon as this returns:
            what is written is the state of now.

    Raises:
        SetupError: the disk is full or cannot be written; older checkpoints are untouched.
    """

    def __init__(
        self,
        manifest: Manifest,
        ranks: Ranks,
        stages: Sequence[VilaModel],
        optimizer: Any,
        *,
        base: Base | None = None,
        in_background: bool,
    ) -> None:
        if base is not None:
            manifest = dataclasses.replace(manifest, base=base.record)
        self._manifest, self._ranks, self._in_background = manifest, ranks, in_background
        self._final = manifest.config.train.output / checkpoint_name(manifest.step)
        self._partial = partial_path(self._final)
        self._on_first_rank(self._start_directory)
        state = run_state(ranks, stages, optimizer, is_loading=False)
        if base is not None:
            state |= {name: base.without(state[name]) for name, _ in named(stages)}
        state["random"] = random_state(ranks)
        self._plan = plan_shards(state, self._partial, ranks)
        most_bytes = manifest.config.train.save_memory_bytes() if in_background else 0
        self._plan.bring_to_host(optimizer, most_bytes)
        self._written = None if in_background else self._plan.write()
        self._background = BackgroundWrite(self._plan) if in_background else None

    def is_written(self) -> bool:
        """Whether all ranks have written their shards, so that ``finish`` will not wait."""
        done = self._background is None or self._background.is_done()
        count = torch.tensor([int(done)], device=self._ranks.device)
        dist.all_reduce(count, op=dist.ReduceOp.MIN)
        return bool(count.item())

    def finish(self) -> Path:
        """Wait for all shards and make the checkpoint visible.

        Returns:
            Its directory. Older checkpoints that are not to be kept are out of sight.

        Raises:
            SetupError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        written = self._written
        if self._background is not None:
            written, self._background = self._background.result(), None
        assert written is not None
        raise_on_every_rank(written.failure, self._final.parent)
        parts: list[Written] | None = (
            [written] * dist.get_world_size() if self._ranks.is_first() else None
        )
        dist.gather_object(written, parts)
        self._on_first_rank(lambda: self._make_visible(parts or []))
        return self._final

    def abandon(self) -> None:
        """Stop writing, on this rank alone, because the run ends in disorder."""
        if self._background is not None:
            self._background.abandon()
            self._background = None

    def _on_first_rank(self, action: Callable[[], object]) -> None:
        on_first_rank(self._ranks, action, self._final.parent)

    def _start_directory(self) -> None:
        if not self._final.parent.exists():
            # Not made anew: that the earlier checkpoints are gone would be missed until much later.
            raise lost_output(self._final.parent)
        new_partial_directory(self._final)

    def _make_visible(self, parts: Sequence[Written]) -> None:
        self._plan.finish([part.results for part in parts])
        save_config(CheckpointingConfig("torch_dist", 1), str(self._partial))
        files = {name: record for part in parts for name, record in part.files.items()}
        for path in sorted(self._partial.iterdir()):
            if path.name not in files:
                files[path.name] = FileRecord.of(path)
        dataclasses.replace(self._manifest, files=files).write(self._partial)
        # What may stand there is not a whole one: a run resumes after the newest of those.
        put_in_place(self._partial, self._final)
        delete_superseded(self._manifest.config.train, in_background=self._in_background)

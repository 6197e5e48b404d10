"""Load the state of a training run, at any layout, or its weights alone."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from vila_mc.checkpoint.adapters import require_same_adapters
from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.base_place import base_directory
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.fp8_state import FP8, put_fp8_state, that_are_kept
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.positions import POSITIONS, positions_stretch, stretched_positions
from vila_mc.checkpoint.require_intact import require_intact, require_same_names, stored_shapes
from vila_mc.checkpoint.safe_index import nothing_foreign_unpickled
from vila_mc.checkpoint.state import (
    RANDOM,
    named,
    put_weights,
    random_state,
    restore_random_state,
    run_state,
    weights_state,
)
from vila_mc.checkpoint.vocabulary import TABLES, grown_shards, vocabulary_grows
from vila_mc.config.lora import is_adapter
from vila_mc.config.train import MODEL_PARTS, ModelPart
from vila_mc.errors import CheckpointError
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks

_OF_DAMAGED_BYTES = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
_NOT_WEIGHTS = ("optimizer.", "common_state/", f"{RANDOM}/", f"{FP8}.")


def load_checkpoint(
    path: Path, ranks: Ranks, stages: Sequence[VilaModel], optimizer: Any
) -> Manifest:
    """Restore weights, moments, scales of FP8 and, at the same layout, random generators.

    The position in data and schedule is in the returned manifest. Settings of the optimizer, such
    as its learning rate, stay those of the run.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    directory, manifest = _open(path, stages, MODEL_PARTS)
    state = run_state(ranks, stages, optimizer, is_loading=True)
    elsewhere = _take_out_of_base(state, stages, directory, manifest)
    has_same_ranks = manifest.layout == ranks.layout
    if has_same_ranks:
        state["random"] = random_state(ranks)
    asked = _known_fp8(state.get(FP8, {}), directory)
    state[FP8] = asked
    require_same_names(directory, state, ignored=("common_state/", f"{RANDOM}/", f"{FP8}."))
    scales = [(entry.data, name, stage) for stage in asked for name, entry in asked[stage].items()]
    loaded = _load(state, directory)
    others = _load_from_base(elsewhere, directory, manifest)
    # First: by these scales weights that are kept in FP8 are cast.
    put_fp8_state((tensor, loaded[FP8][stage][name]) for tensor, name, stage in scales)
    for name, stage in named(stages):
        put_weights(stage, loaded[name] | others.get(name, {}))
    _load_moments(optimizer, loaded["optimizer"])
    if has_same_ranks:
        restore_random_state(loaded["random"])
    return manifest


def load_weights(
    path: Path, stages: Sequence[VilaModel], parts: Sequence[ModelPart] = MODEL_PARTS
) -> Manifest:
    """Restore the weights alone, as a new phase of training starts from the previous one.

    A model with more tokens than the checkpoint's gets the mean of the known ones for each new one;
    with ``train.interpolate_positions`` a tower may have another image size.

    Args:
        path: a step-* directory, or a directory of them (the newest is taken).
        stages: this rank's stages.
        parts: which of vision, connector and language to restore; the others stay as they are.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    directory, manifest = _open(path, stages, parts, may_grow=True)
    wanted = tuple(f"{part}." for part in parts)
    has_adapters = manifest.config.lora.rank is not None
    state = {
        stage: {
            name: weight
            for name, weight in weights.items()
            if weight.key.startswith(wanted) and (has_adapters or not is_adapter(weight.key))
        }
        for stage, weights in weights_state(stages).items()
    }
    others = tuple(f"{part}." for part in MODEL_PARTS if part not in parts)
    config = stages[0].run_config
    growing = TABLES if vocabulary_grows(manifest, config, parts) else ()
    stretched = (POSITIONS,) if positions_stretch(manifest, config, parts) else ()
    tables = {stage: _taken_out(weights, growing) for stage, weights in state.items()}
    positions = {stage: _taken_out(weights, stretched) for stage, weights in state.items()}
    changed = (*growing, *stretched)
    elsewhere = _take_out_of_base(state, stages, directory, manifest)
    require_same_names(directory, state, ignored=(*_NOT_WEIGHTS, *others, *changed))
    loaded = _load(state, directory)
    beside = _load_from_base(elsewhere, directory, manifest)
    num_real = manifest.config.model.language.vocab_size
    tensors = open_whole(directory, manifest) if changed else {}
    for name, stage in named(stages):
        weights = loaded.get(name, {}) | beside.get(name, {})
        weights |= grown_shards(tensors, num_real, tables[name])
        weights |= stretched_positions(tensors, config, positions[name])
        is_whole = len(parts) == len(MODEL_PARTS) and (has_adapters or not stage.has_adapters())
        put_weights(stage, weights, is_whole=is_whole)
    return manifest


def _known_fp8(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What of FP8's scales a checkpoint has; a run of another recipe or history has none."""
    stored = stored_shapes(directory) if state else {}
    return {stage: that_are_kept(theirs, stored) for stage, theirs in state.items()}


def _take_out_of_base(
    state: dict[str, Any], stages: Sequence[VilaModel], directory: Path, manifest: Manifest
) -> dict[str, dict[str, Any]]:
    """The weights of each stage that a checkpoint leaves in its base; no longer in ``state``."""
    if manifest.base is None:
        return {}
    stored = stored_shapes(directory)
    return {
        name: _taken_out(
            state[name],
            [
                entry.key
                for entry in state[name].values()
                if not isinstance(entry, ShardedObject) and entry.key not in stored
            ],
        )
        for name, _ in named(stages)
    }


def _load_from_base(
    state: dict[str, dict[str, Any]], directory: Path, manifest: Manifest
) -> dict[str, Any]:
    """What ``_take_out_of_base`` has found, read from there; every rank must call this."""
    base = base_directory(directory, manifest)
    if base is None:
        return {}
    require_intact(base, Manifest.read(base))
    require_same_names(base, state, ignored=("",))
    return _load(state, base)


def _taken_out(weights: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The ``weights`` with these keys in the checkpoint, which are no longer among the others."""
    names = [name for name, weight in weights.items() if weight.key in keys]
    return {name: weights.pop(name) for name in names}


def _open(
    path: Path, stages: Sequence[VilaModel], parts: Sequence[ModelPart], *, may_grow: bool = False
) -> tuple[Path, Manifest]:
    directory = resolve_checkpoint(path)
    manifest = Manifest.read(directory)
    run = stages[0].run_config
    manifest.require_same_model(run, directory, parts, may_grow=may_grow)
    require_same_adapters(manifest.config.lora, run.lora, directory, parts)
    require_intact(directory, manifest)
    return directory, manifest


def _load(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    try:
        with nothing_foreign_unpickled():
            loaded: dict[str, Any] = dist_checkpointing.load(
                state, str(directory), strict=StrictHandling.ASSUME_OK_UNEXPECTED
            )
    # torch's CheckpointException is not an Exception: it carries one failure per rank. Of the
    # others, anything may come out of damaged bytes.
    except (CheckpointException, CheckpointingException, *_OF_DAMAGED_BYTES) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{directory} cannot be loaded: {first_line[:300]}. It is damaged or incomplete; use "
            "an older step-* directory."
        ) from error
    return loaded


def _load_moments(optimizer: Any, state: dict[str, Any]) -> None:
    """Take moments and their step from the checkpoint, and settings from the run.

    Megatron-Core finds a parameter group by its settings and would fail on a changed learning rate.
    All groups have taken the same steps.
    """
    steps = [group["step"] for group in state["optimizer"]["param_groups"] if "step" in group]
    progress = {"step": steps[0]} if steps else {}
    state["optimizer"]["param_groups"] = [
        {name: value for name, value in group.items() if name != "params"} | progress
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)

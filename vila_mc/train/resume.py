"""May this run go on from that checkpoint, and which changed settings apply from there on?"""

from pathlib import Path

from vila_mc.checkpoint.adapters import require_same_adapters
from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.manifest import DatasetRecord, Manifest, leaves
from vila_mc.config.load import run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.data.indexed.dataset_manifest import read_manifest
from vila_mc.errors import CheckpointError, ConfigError

_REPORTED = (
    "optimizer.",
    "train.steps",
    "train.global_batch",
    "data.sequence",
    "data.packing",
    "lora.dropout",
)
"""Beginnings of options that decide what is learnt; a change of them is said aloud."""


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """The newest checkpoint in ``train.output``, or None if the run starts anew.

    Raises:
        ConfigError: train.resume or train.steps forbids it.
        CheckpointError: it is damaged, an import, of another model, or of other data.
        DataError: a dataset is missing.
    """
    train = config.train
    earlier = newest_checkpoint(train.output)
    if earlier is None:
        return None
    if not train.resume:
        raise ConfigError(
            f"{train.output} already holds {earlier.name}, and train.resume is false. Set "
            "train.resume to true to go on from it, or train.output to another directory."
        )
    manifest = Manifest.read(earlier)
    if manifest.step == 0 and manifest.layout is None:
        raise CheckpointError(
            f"train.output {train.output} holds an import, {earlier.name}, which has weights and "
            "no run to go on with. Name it in train.load, and another directory in train.output."
        )
    manifest.require_same_model(config, earlier)
    require_same_adapters(manifest.config.lora, config.lora, earlier)
    _require_same_task(manifest, config)
    if manifest.step > train.steps:
        raise ConfigError(
            f"train.steps is {train.steps}, but {earlier} has trained {manifest.step} steps "
            "already. Raise train.steps to go on, or set train.output to another directory."
        )
    return earlier


def blend_since(manifest: Manifest, config: RunConfig) -> int:
    """The position at which the order that the run goes on in begins.

    Raises:
        DataError: a dataset is missing.
    """
    return manifest.blend_since if _is_same_order(manifest, config) else manifest.samples_seen


def random_parts(config: RunConfig) -> str | None:
    """One line about the parts of a new run that no checkpoint gives weights; None without any."""
    train = config.train
    given = () if train.load is None else train.load_parts
    parts = [part for part in MODEL_PARTS if part not in given]
    source = "nothing, as train.load is not set" if train.load is None else f"{train.load}"
    return (
        f"random weights (train.seed {train.seed}) for {', '.join(parts)}; read from {source}"
        if parts
        else None
    )


def loaded_parts(manifest: Manifest, directory: Path, config: RunConfig) -> str:
    """One line about the parts that ``train.load`` gives, and what starts anew beside them."""
    parts = ", ".join(part for part in MODEL_PARTS if part in config.train.load_parts)
    phase = manifest.config.train.phase
    since = f"after step {manifest.step:,} of {phase}" if manifest.step else "as it was imported"
    changed = changed_numbers(manifest, config) if manifest.step else ""
    before, now = (each.model.vision.images_become() for each in (manifest.config, config))
    images = "" if before == now else f"; images, {before} until then, are now {now}"
    return (
        f"{parts} from {directory}, {since}; optimizer, schedule and position in the data start "
        f"anew{f'; {changed}' if changed else ''}{images}"
    )


def unread_load(manifest: Manifest, config: RunConfig) -> str | None:
    """One line if a run that goes on was given other weights to start from; None if not."""
    load, before = config.train.load, manifest.config.train.load
    if load is None or load == before:
        return None
    return (
        f"train.load {load} is not read: the run goes on from its own checkpoint. Set train.output "
        "to another directory to start from those weights"
    )


def changed_settings(manifest: Manifest, config: RunConfig) -> list[str]:
    """``option old -> new`` for every setting that now applies and was another before."""
    before, now = run_to_dict(manifest.config), run_to_dict(config)
    changes = []
    for section in ("optimizer", "train", "data", "lora"):
        old, new = leaves(before[section], section), leaves(now[section], section)
        changes += [
            f"{name} {old.get(name)} -> {new[name]}"
            for name in new
            if name.startswith(_REPORTED) and new[name] != old.get(name)
        ]
    return changes


def changed_numbers(manifest: Manifest, config: RunConfig) -> str:
    """One line if what is computed is rounded in another way from here on; empty if not.

    What the layers are made of changes no result, nor does whether FP8 is emulated.
    """
    before, now = manifest.config.train, config.train
    changes = []
    if before.precision != now.precision:
        changes.append(f"train.precision {before.precision} -> {now.precision}")
    old = before.fp8.decides()
    changes += [
        f"train.fp8.{name} {old[name]} -> {new}"
        for name, new in now.fp8.decides().items()
        if name in old and old[name] != new
    ]
    return f"from here on: {', '.join(changes)}" if changes else ""


def _require_same_task(manifest: Manifest, config: RunConfig) -> None:
    """A position means something only in the order it was counted in, moments only for what learns.

    Raises:
        CheckpointError: the run learns something else, or in another order.
    """
    elsewhere = "start a new phase from its weights with train.load and another train.output."
    if not config.data.blend_may_change:
        _require_same_order(manifest, config, elsewhere)
    if config.lora.parts() and not manifest.config.lora.parts():
        raise CheckpointError(
            f"the checkpoint after step {manifest.step} was written without adapters, so it has no "
            f"optimizer state for those of lora.rank {config.lora.rank}. Set lora.rank to none, or "
            f"{elsewhere}"
        )
    if manifest.config.learning_pieces() != config.learning_pieces():
        raise CheckpointError(
            f"the checkpoint after step {manifest.step} was written with train.trainable "
            f"[{', '.join(manifest.config.train.trainable)}], so it has no optimizer state for "
            f"[{', '.join(config.train.trainable)}]. Restore it, or {elsewhere}"
        )


def _order(config: RunConfig) -> tuple[object, ...]:
    data = config.data
    return data.seed, data.by_epochs(), data.blend_shares(), data.held_out


def _is_same_order(manifest: Manifest, config: RunConfig) -> bool:
    datasets = tuple(DatasetRecord.of(read_manifest(each.path)) for each in config.data.blend)
    return (_order(manifest.config), manifest.datasets) == (_order(config), datasets)


def _require_same_order(manifest: Manifest, config: RunConfig, elsewhere: str) -> None:
    """A dataset may lie elsewhere now, but the same samples must stand at the same places in it.

    Raises:
        CheckpointError: one holds something else, or they are read in another order.
        DataError: one is missing.
    """
    elsewhere = f"go on with it all the same with data.blend_may_change, or {elsewhere}"
    if _order(manifest.config) != _order(config):
        raise CheckpointError(
            f"the checkpoint after step {manifest.step} was written with another data.seed, "
            f"data.held_out or data.blend, so its position in the data means nothing here. "
            f"Restore them, {elsewhere}"
        )
    paths = [entry.path for entry in config.data.blend]
    for path, before in zip(paths, manifest.datasets, strict=True):
        now = DatasetRecord.of(read_manifest(path))
        if now != before:
            raise CheckpointError(
                f"the dataset {path} holds other samples ({now}) than when the checkpoint after "
                f"step {manifest.step} was written ({before}), so its position in the data means "
                f"nothing here. Restore that dataset, {elsewhere}"
            )

"""Where the base of adapters is, and how to say that it has moved."""

import os
from dataclasses import replace
from pathlib import Path

from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.checkpoint.manifest import MANIFEST_NAME, BaseRecord, Manifest
from vila_mc.checkpoint.needed import mark_needed
from vila_mc.errors import CheckpointError


def record_of(directory: Path, manifest: Manifest, output: Path) -> BaseRecord:
    """What checkpoints in ``output`` say of the base ``directory``."""
    path = str(directory.absolute())
    relative = os.path.relpath(path, output.absolute() / "step")
    return BaseRecord(path=path, relative=relative, fingerprint=manifest.fingerprint())


def base_directory(directory: Path, manifest: Manifest) -> Path | None:
    """Where the weights are that a checkpoint does not hold; None if it holds all.

    Raises:
        CheckpointError: they are no longer there, or others are.
    """
    record = manifest.base
    if record is None:
        return None
    found = named_base(directory, record)
    if found is None:
        raise CheckpointError(
            f"{directory} holds adapters and what else learned; the other weights are those of "
            f"{record.path}, which is not there any more. Put it back, or at "
            f"{os.path.normpath(directory / record.relative)}; or say where it is now (vila-mc "
            "convert relink)."
        )
    fingerprint = Manifest.read(found).fingerprint()
    if fingerprint != record.fingerprint:
        raise CheckpointError(
            f"the adapters of {directory} were trained beside other weights than those that are in "
            f"{found} now (fingerprint {record.fingerprint[:12]}, now {fingerprint[:12]}). Put the "
            "checkpoint back that they were trained beside, or say where it is now (vila-mc "
            "convert relink)."
        )
    return found


def named_base(directory: Path, record: BaseRecord) -> Path | None:
    """The checkpoint at the place that ``directory`` names as its base; None if there is none."""
    places = (Path(record.path), (directory / record.relative).resolve())
    return next((place for place in places if (place / MANIFEST_NAME).is_file()), None)


def relink(adapters: Path, base: Path) -> tuple[list[Path], Path]:
    """Say in checkpoints of adapters where their base is now.

    Args:
        adapters: one of them, or a directory of them.
        base: the checkpoint that they were trained beside, or a directory of checkpoints.

    Returns:
        The checkpoints of adapters, and their base.

    Raises:
        CheckpointError: there are no adapters, or it is another base.
    """
    ours = [adapters] if (adapters / MANIFEST_NAME).is_file() else whole_checkpoints(adapters)
    manifests = {path: Manifest.read(path) for path in ours}
    records = {path: each.base for path, each in manifests.items() if each.base is not None}
    if not records:
        raise CheckpointError(f"{adapters} holds no checkpoint of adapters beside a base.")
    candidates = [base] if (base / MANIFEST_NAME).is_file() else whole_checkpoints(base)
    fingerprints = {Manifest.read(path).fingerprint(): path for path in candidates}
    for path, record in records.items():
        if record.fingerprint not in fingerprints:
            raise CheckpointError(
                f"{base} does not hold the weights that the adapters of {path} were trained beside "
                f"(fingerprint {record.fingerprint[:12]}). Name the checkpoint that does."
            )
    for path, record in records.items():
        place = fingerprints[record.fingerprint]
        now = record_of(place, Manifest.read(place), path.parent)
        replace(manifests[path], base=now).write(path)
    mark_needed(place, path.parent)
    return list(records), place

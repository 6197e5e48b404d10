"""What ``vila-mc plan`` is told of a run's rows, or finds in the indices of its datasets."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from math import inf

from vila_mc.config.run import RunConfig
from vila_mc.data.batches.datasets import open_indices
from vila_mc.data.indexed.dataset_manifest import SUFFIX
from vila_mc.data.indexed.layout import with_suffix
from vila_mc.errors import ConfigError
from vila_mc.planner.known import DECODED, WRITTEN, Known
from vila_mc.planner.replay import Replay
from vila_mc.train.passes import with_steps


def add_data_options(parser: ArgumentParser) -> None:
    """Add what a recipe does not say of its rows and of the machines."""
    group = parser.add_argument_group("rows and machines")
    group.add_argument(
        "--images",
        type=float,
        metavar="X",
        help="squares of a row on average, each an image or a tile (default: those of the datasets "
        "of data.blend, where their indices are here; else as many as have room)",
    )
    group.add_argument(
        "--decoded",
        type=float,
        default=DECODED,
        metavar="X",
        help="images that one worker process makes ready in a second (default: %(default)g)",
    )
    group.add_argument(
        "--disk",
        type=float,
        default=WRITTEN / 1e9,
        metavar="GB",
        help="10^9 bytes that storage takes in a second from all machines together (default: "
        "%(default)g, one local disk)",
    )


def known_of(parsed: Namespace, config: RunConfig) -> tuple[RunConfig, Known, str]:
    """The recipe with its steps counted, what is known of its rows, and a line about that.

    Raises:
        ConfigError: an option cannot be.
        DataError: an index is damaged.
    """
    _require_possible(parsed, config)
    known = Known(images=parsed.images, decoded=parsed.decoded, disk=parsed.disk * 1e9)
    why = _why_not_replayed(parsed, config)
    if why:
        if config.train.epochs is not None:
            said = "assumed: the datasets say what train.epochs comes to"
            known = replace(known, steps_from=said, are_steps_known=False)
        return config, known, why
    readers = open_indices(config.data, config.model)
    if config.train.epochs is not None:
        said = f"train.epochs {config.train.epochs:g} of the index"
        known, config = replace(known, steps_from=said), with_steps(config, readers)
    replay = Replay.of(config, readers)
    names = ", ".join(reader.prefix.name for reader in readers)
    line = f"Rows are those of {names}: {len(replay.batches)} steps of their indices are replayed."
    return config, replace(known, replay=replay), line


def _why_not_replayed(parsed: Namespace, config: RunConfig) -> str:
    """A line about what rows are taken to be instead; nothing if all indices are here."""
    if parsed.images is not None:
        return f"Rows are taken to hold {parsed.images:g} images on average, as was given."
    blend = config.data.blend
    absent = [entry.path for entry in blend if not with_suffix(entry.path, SUFFIX).exists()]
    if blend and not absent:
        return ""
    why = f"there is no dataset {absent[0]} here" if blend else "data.blend names no dataset"
    return f"Rows are taken to be full of images, which is the worst: {why}."


def _require_possible(parsed: Namespace, config: RunConfig) -> None:
    """Refuse what no row holds, and no storage does."""
    if parsed.images is not None and not 0 <= parsed.images < inf:
        raise ConfigError(f"--images is {parsed.images}; it must be 0 or greater.")
    for name in ("decoded", "disk"):
        value = getattr(parsed, name)
        if not 0 < value < inf:
            raise ConfigError(f"--{name} is {value:g}; it must be greater than 0.")
    length = config.data.sequence_length
    most = length // config.model.tile_positions()
    if parsed.images is not None and parsed.images > most:
        raise ConfigError(
            f"--images is {parsed.images:g}, but a row of {length:,} positions has room for "
            f"{most}. Give at most that."
        )

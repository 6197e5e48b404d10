"""``vila-mc evaluate --loss``: the loss of a checkpoint, as its run measures it."""

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vila_mc.commands.command import refuse_unused
from vila_mc.config.options import flag
from vila_mc.errors import ConfigError, say
from vila_mc.files import write_json

if TYPE_CHECKING:
    from vila_mc.commands.evaluate import EvaluateOptions

_OF_LOSS = ("checkpoint", "tokenizer", "loss", "datasets", "output")


def evaluate_loss(options: "EvaluateOptions") -> int:
    """Measure, print, write. Raises VilaError."""
    refuse_unused(options, ["ranks", "tensor"], "--loss is measured in one process")
    if options.precision != "fp32":
        raise ConfigError("--loss is measured in fp32. Leave --precision out.")
    for one in fields(options):
        if one.name not in _OF_LOSS and getattr(options, one.name) != one.default:
            raise ConfigError(
                f"{flag(one.name)} is given, but --loss asks for no answer. Leave it out."
            )
    if "RANK" in os.environ:
        raise ConfigError("--loss is measured in one process. Start it without a launcher.")
    from vila_mc.train.checkpoint_loss import checkpoint_loss

    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after
    record, names = checkpoint_loss(options.checkpoint, options.datasets, options.tokenizer)
    for name, loss in zip(names, record.validation_loss_by_entry, strict=True):
        say(f"{_shown(name)}: {'nothing is trained' if loss is None else f'{loss:.4f}'}")
    say(
        f"validation loss {record.validation_loss:.4f} after step {record.step:,}, "
        f"{record.validation_tokens:,} tokens"
    )
    write_json(options.output, {**asdict(record), "datasets": list(map(str, names))})
    return 0


def _shown(path: Path) -> str:
    return f"loss on {path}"

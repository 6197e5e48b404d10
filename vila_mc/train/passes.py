"""How often a run reads its data: steps from train.epochs, and epochs from train.steps."""

import dataclasses
import math
from collections.abc import Sequence

from vila_mc.config.run import RunConfig
from vila_mc.data.batches.datasets import sampler_of
from vila_mc.data.batches.held_out import learnt_parts, validation_parts
from vila_mc.data.indexed.dataset_manifest import contents_sha256
from vila_mc.data.indexed.reader import IndexedReader


def with_steps(config: RunConfig, readers: Sequence[IndexedReader]) -> RunConfig:
    """The same run with ``train.steps`` in place of ``train.epochs``.

    The steps are those of a run that reads all its data with these settings.
    """
    if config.train.epochs is None:
        return config
    sampler = sampler_of(config.data, config.model, config.train.global_batch, readers)
    passes = sampler.passes(config.train.epochs)
    assert passes is not None, "RunConfig refuses epochs of a blend without end"
    steps = math.ceil(round(passes.steps, 6))
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=steps, epochs=None)
    )


def passes_line(config: RunConfig, readers: Sequence[IndexedReader]) -> str:
    """``1,440 samples, 22.5 steps a pass, 31 passes``; of several datasets the samples of each.

    Of a blend by weights, how often each dataset is read:
    ``50 steps of 64 samples: mmc4 0.2 passes of 9,000 samples, sft 2.5 passes of 640 samples``.
    """
    sampler = sampler_of(config.data, config.model, config.train.global_batch, readers)
    one, parts = sampler.passes(), learnt_parts(config.data, readers)
    if one is None:
        a_step = len(sampler.at(0).samples)
        samples = config.train.steps * a_step
        shares = config.data.blend_shares()
        about = "about " if config.data.packing else ""
        reads = [samples * share / sum(shares) for share in shares]
        each = ", ".join(
            f"{name} {about}{_short(read / part.size)} passes of {part.size:,} samples"
            for name, part, read in zip(_names(readers), parts, reads, strict=True)
        )
        return f"{config.train.steps:,} steps of {about}{a_step:,} samples: {each}"
    about = "" if one.is_exact else "about "
    passes = config.train.steps / one.steps
    epochs = config.data.blend_shares() if config.data.by_epochs() else [1.0]
    draws = [max(1, round(n * part.size)) for n, part in zip(epochs, parts, strict=True)]
    each = ", ".join(f"{name} {n:,}" for name, n in zip(_names(readers), draws, strict=True))
    of_each = f" ({each})" if len(readers) > 1 else ""
    return (
        f"{one.samples:,} samples{of_each}, {about}{_short(one.steps)} steps a pass, "
        f"{about}{_short(passes)} passes"
    )


def validation_line(config: RunConfig, readers: Sequence[IndexedReader]) -> str:
    """``validation every 100 steps on 360 samples of held_out``; empty without validation."""
    if not config.validates():
        return ""
    parts = validation_parts(config.data, readers)
    shares = config.data.validation_epochs()
    reads = [max(1, round(share * part.size)) for share, part in zip(shares, parts, strict=True)]
    whole, every = len(config.data.validation), config.train.validate_every
    sets = []
    for some, said in ((slice(whole), "of"), (slice(whole, None), "held out of")):
        if names := ", ".join(_names(readers[some])):
            sets.append(f"{sum(reads[some]):,} samples {said} {names}")
    return f"validation every {every} steps and at the end, on {' and '.join(sets)}"


def seen_in_training(
    readers: Sequence[IndexedReader], validation: Sequence[IndexedReader]
) -> str | None:
    """One line if a dataset of the validation is one that the run learns from; None if not."""
    learnt = {contents_sha256(reader.manifest) for reader in readers}
    seen = [
        str(reader.prefix) for reader in validation if contents_sha256(reader.manifest) in learnt
    ]
    return (
        f"data.validation holds what data.blend holds ({', '.join(seen)}), so its loss does not "
        "say what the model makes of new samples"
        if seen
        else None
    )


def _names(readers: Sequence[IndexedReader]) -> list[str]:
    """What to call each dataset: its name, or its whole path where two have one name."""
    names = [reader.prefix.name for reader in readers]
    return names if len(set(names)) == len(names) else [str(reader.prefix) for reader in readers]


def _short(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")

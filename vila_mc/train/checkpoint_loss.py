"""The loss of a checkpoint on data that nothing learns from, as a run measures it."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from vila_mc.checkpoint.whole import whole_model
from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.errors import ConfigError
from vila_mc.observe.record import ValidationRecord
from vila_mc.train.step import loss_by_entry, trained_by_entry
from vila_mc.train.validation import validation_record


def checkpoint_loss(
    path: Path, datasets: Sequence[Path] = (), tokenizer: Path | None = None
) -> tuple[ValidationRecord, list[Path]]:
    """Measure the loss in one process, in fp32, in rows as the run makes them.

    Args:
        path: a step-* directory, or a run, of which the newest checkpoint is taken.
        datasets: prefixes of indexed datasets; those of ``data.validation`` and what
            ``data.held_out`` keeps back if there are none.
        tokenizer: the run's own if None.

    Returns:
        what was measured, and the dataset of each entry of it.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: the run validated on nothing, and no dataset is named.
        DataError: a dataset cannot be used.
    """
    started = time.monotonic()
    with whole_model(path) as (model, manifest):
        config = manifest.config
        data = _data(config, datasets, tokenizer, path)
        names = [entry.path for entry in data.validation]
        names += [entry.path for entry in data.blend if data.held_out]
        device = next(model.parameters()).device
        figures = torch.zeros(2, len(names), dtype=torch.float64)
        with _reading(config, data) as reading, torch.no_grad():
            for microbatches in reading.validation():
                for batch in microbatches:
                    loss_bs = model(batch.to(device))
                    _, _, report = loss_by_entry(batch.to(device), len(names), loss_bs)
                    trained = trained_by_entry([batch], len(names))
                    figures += torch.stack([report["by_entry"].cpu(), trained])
    return validation_record(figures, manifest.step, time.monotonic() - started), names


def _data(
    config: RunConfig, datasets: Sequence[Path], tokenizer: Path | None, path: Path
) -> DataConfig:
    """What is read: of the blend only what it takes to know what is held out."""
    data = config.data
    if datasets:
        entries = tuple(BlendEntry(path=each) for each in datasets)
        data = dataclasses.replace(data, validation=entries, held_out=0.0)
    if not data.num_validation_sets():
        raise ConfigError(
            f"the run of {path} had neither data.validation nor data.held_out. Name datasets.",
            option="datasets",
        )
    blend = data.blend if data.held_out else tuple(BlendEntry(path=e.path) for e in data.validation)
    return dataclasses.replace(data, blend=blend, tokenizer=tokenizer or data.tokenizer, workers=0)


def _reading(config: RunConfig, data: DataConfig) -> TrainingData:
    rows = config.train.rows_of_a_pass()
    return TrainingData(
        data,
        config.model,
        micro_batch=rows,
        global_batch=config.train.global_batch // rows * rows or rows,
        data_rank=0,
        data_size=1,
        needs_images=True,
    )

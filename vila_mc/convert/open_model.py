"""A model to ask, from a training checkpoint or from a directory of Hugging Face."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vila_mc.checkpoint.directories import newest_checkpoint
from vila_mc.checkpoint.lazy import Reading
from vila_mc.checkpoint.manifest import MANIFEST_NAME
from vila_mc.checkpoint.trained_template import template_to_ask_with
from vila_mc.checkpoint.trained_tokenizer import another_tokenizer
from vila_mc.checkpoint.whole import BeforeLoading, to_evaluate, whole_model
from vila_mc.config.train import Precision
from vila_mc.convert.chat_template import published_template
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.import_checkpoint import run_of
from vila_mc.data.chat_templates import AnyTemplate, Template
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.topology.shapes import Parameter, stage_parameters

_PLAIN_NOTE = (
    "the template plain is a prompt of the images alone, so the words of a question are not put to "
    "the model"
)


@contextmanager
def open_model(
    path: Path,
    tokenizer: Path | None = None,
    template: str | None = None,
    tensor: int = 1,
    before_loading: BeforeLoading | None = None,
    precision: Precision = "fp32",
) -> Iterator[tuple[AskedModel, list[str]]]:
    """A whole model, in this process or shared by tensor-parallel ranks.

    A directory of Hugging Face is read as an import reads it, so that no code in it runs; pixels,
    tokens and prompts are made by ours, as in training.

    Args:
        path: a checkpoint of any layout, a run that holds some (the newest is taken), or an export
            or published model of a format that is imported whole.
        tokenizer: the one that the model was trained with if None.
        template: a name as ``find_template`` takes it; the one that it was trained with if None.
        tensor: ranks that hold one copy together; the others that were started hold more copies.
        before_loading: told what is about to be loaded; it may refuse.
        precision: of weights and activations.

    Yields:
        The model, and lines about what may not be as in its training.

    Raises:
        ConfigError: no tokenizer is known, there is no such template, or model or ranks do not
            divide by ``tensor``.
        CheckpointError: the model is missing, damaged, or not supported.
        DataError: the tokenizer cannot be used.
    """
    opened = _open_published if is_published(path) else _open_checkpoint
    with opened(path, tokenizer, template, tensor, before_loading, precision) as (asked, notes):
        if isinstance(asked.template, Template) and asked.template.is_plain:
            notes.append(_PLAIN_NOTE)
        yield asked, notes


def is_published(path: Path) -> bool:
    """Whether a directory is one of Hugging Face rather than one of checkpoints."""
    has_checkpoint = (path / MANIFEST_NAME).is_file() or newest_checkpoint(path) is not None
    return (path / "config.json").is_file() and not has_checkpoint


@contextmanager
def _open_checkpoint(
    path: Path,
    tokenizer: Path | None,
    template: str | None,
    tensor: int,
    before_loading: BeforeLoading | None,
    precision: Precision,
) -> Iterator[tuple[AskedModel, list[str]]]:
    with whole_model(path, tensor, before_loading, precision) as (model, manifest):
        known = _tokenizer(tokenizer or manifest.config.data.tokenizer, path)
        chosen, note = template_to_ask_with(template, known, manifest.datasets, manifest.template)
        notes = [another_tokenizer(manifest, known), note]
        yield AskedModel(model, known, chosen), [text for text in notes if text]


@contextmanager
def _open_published(
    path: Path,
    tokenizer: Path | None,
    template: str | None,
    tensor: int,
    before_loading: BeforeLoading | None,
    precision: Precision,
) -> Iterator[tuple[AskedModel, list[str]]]:
    source = read_whole(path)
    known = _tokenizer(tokenizer or _tokenizer_of(source), path)
    chosen, note = _template(source, known, template)
    with _built(source, tensor, before_loading, precision) as model:
        yield AskedModel(model, known, chosen), [note] if note else []


def _template(
    source: ForeignModel, tokenizer: Tokenizer, name: str | None
) -> tuple[AnyTemplate, str]:
    found = published_template(source.tokenizer_dir, tokenizer)
    return template_to_ask_with(name, tokenizer, (), None if found is None else found.describe())


def _tokenizer(path: Path | None, where: Path) -> Tokenizer:
    if path is None:
        raise ConfigError(f"{where} names no tokenizer. Give one.", option="tokenizer")
    try:
        return Tokenizer(path)
    except DataError as error:  # it may lie elsewhere now
        raise DataError(str(error), option="tokenizer") from None


def _tokenizer_of(source: ForeignModel) -> Path | None:
    """What an import would take."""
    model = source.tokenizer_dir / "tokenizer.model"
    if model.exists():
        return model
    return source.tokenizer_dir if (source.tokenizer_dir / "tokenizer.json").exists() else None


@contextmanager
def _built(
    source: ForeignModel,
    tensor: int,
    before_loading: BeforeLoading | None,
    precision: Precision,
) -> Iterator[VilaModel]:
    config = to_evaluate(run_of(source, "fp32"), tensor, precision)
    with distributed(config.parallel, seed=config.train.seed) as ranks:
        if before_loading is not None:
            before_loading(config, ranks)
        (model,) = build_stages(config, ranks)
        tensors = Reading(source.tensors, str(source.tokenizer_dir))
        shapes = {
            each.name: each
            for each in stage_parameters(
                config.model, model.plan, splits_connector=config.splits_connector()
            )
        }
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(_shard(tensors[name], shapes[name], ranks))
        yield model.eval()


def _shard(whole: Tensor, parameter: Parameter, ranks: Ranks) -> Tensor:
    """What this tensor-parallel rank holds of a parameter."""
    axis, tensor = parameter.split_axis, ranks.layout.tensor
    if axis is None or tensor == 1:
        return whole
    blocks = whole.chunk(parameter.blocks, axis)
    return torch.cat([block.chunk(tensor, axis)[ranks.at.tensor] for block in blocks], axis)

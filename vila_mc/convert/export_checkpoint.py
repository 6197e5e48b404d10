"""Export a training checkpoint and prove the export, in a bounded amount of memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.trained_template import DEFAULT_NAME, template_of, trained_template
from vila_mc.convert.formats.registry import FormatName, find_format
from vila_mc.convert.formats.write_export import (
    DEFAULT_SHARD_BYTES,
    write_export,
    written_format,
)
from vila_mc.convert.merge_adapters import merged
from vila_mc.convert.proof.compare import (
    Differences,
    ProofPrompt,
    Reference,
    compare_export,
)
from vila_mc.convert.proof.reference import (
    ProvingModel,
    answered_prompts,
    image_token_of,
    proving_model,
    reference_of,
)
from vila_mc.convert.weights import open_weights
from vila_mc.data.chat_templates import Template
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError, ConfigError, DataError, say
from vila_mc.model.megatron_config import DTYPES


@dataclass(frozen=True, slots=True)
class Question:
    """What a proof asks besides random tokens."""

    text: str
    images: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """An export that computes what its training model computes."""

    result: Differences
    is_streamed: bool
    """Whether weights were read as they were used; then no greedy tokens were compared."""


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    format: FormatName = "hf-vila",
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    needs_adapters: bool = False,
) -> None:
    """Write an export of a checkpoint of any layout, tensor by tensor, adapters merged.

    Args:
        checkpoint: a step-* directory, or a directory of them.
        output: directory to write.
        format: its name.
        tokenizer: the one that the checkpoint was trained with if None.
        dtype: as it was trained if None.
        max_shard_bytes: most bytes in one weight file.
        needs_adapters: whether a checkpoint without any is refused.

    Raises:
        ConfigError: no tokenizer is known.
        CheckpointError: the checkpoint is damaged, or cannot be exported so.
    """
    directory = resolve_checkpoint(checkpoint)
    manifest = Manifest.read(directory)
    config = manifest.config
    if needs_adapters and not config.lora.parts():
        raise CheckpointError(
            f"{directory} holds no adapters to merge, as it was trained without lora.rank.",
            option="merge_lora",
        )
    tokenizer = tokenizer or config.data.tokenizer
    if tokenizer is None:
        raise ConfigError("the checkpoint names no tokenizer. Give one.", option="tokenizer")
    template, note = trained_template(manifest.datasets, manifest.template)
    if note:
        say(note)
    if template_of(manifest) is None:
        say(
            "it is not recorded which chat template the model was trained with: that of the export "
            f"is {DEFAULT_NAME}"
        )
    if find_format(format).has_own_code and isinstance(template, TokenizerTemplate):
        say(
            "no chat template is written: the model was trained with its tokenizer's own, which "
            f"the processor of {format} cannot apply to images. Other formats hold it.",
        )
    write_export(
        merged(open_whole(directory, manifest), config.model, config.lora),
        config.model,
        tokenizer,
        output,
        dtype or DTYPES[config.train.precision],
        max_shard_bytes,
        format,
        template,
    )


def prove_export(
    checkpoint: Path,
    export: Path,
    question: Question,
    tokenizer: Path | None = None,
    *,
    is_streamed: bool | None = None,
    trusts_code: bool = False,
) -> Proof:
    """Reload an export in a fresh process and compare it with its training checkpoint.

    Args:
        checkpoint: what was exported.
        export: what was written.
        question: asked where the format has code of its own.
        tokenizer: the one that the checkpoint was trained with if None.
        is_streamed: as ``proving_model`` takes it.
        trusts_code: whether modelling files that this version of vila_mc did not write may run.

    Raises:
        CheckpointError: they compute something else, or the export does not load.
    """
    reference = _reference(checkpoint, export, question, tokenizer, is_streamed)
    result = compare_export(export, reference, trusts_code=trusts_code)
    return Proof(result, reference.is_streamed)


def _reference(
    checkpoint: Path,
    export: Path,
    question: Question,
    tokenizer: Path | None,
    is_streamed: bool | None,
) -> Reference:
    """What the training model computes; the model itself is gone when the export is loaded."""
    format = written_format(export)
    manifest = Manifest.read(resolve_checkpoint(checkpoint))
    tokenizer = tokenizer or manifest.config.data.tokenizer
    template, _ = trained_template(manifest.datasets, manifest.template)
    with proving_model(checkpoint, _dtype_of(export), is_streamed=is_streamed) as proving:
        prompts: tuple[ProofPrompt, ...] = ()
        can_ask = format.has_own_code and not proving.is_streamed
        if can_ask and tokenizer is not None and isinstance(template, Template):
            prompts = _asked(proving, tokenizer, question, template)
        return reference_of(
            proving,
            prompts,
            has_images=format.sees_images,
            reserved_token=image_token_of(export),
        )


def _asked(
    proving: ProvingModel, tokenizer: Path, question: Question, template: Template
) -> tuple[ProofPrompt, ...]:
    """The question and its answers; none, and a line that says so, where it cannot be put."""
    try:
        known = Tokenizer(tokenizer)
    except DataError as error:
        say(f"no question is put: {error}")
        return ()
    try:
        return answered_prompts(proving.model, known, question.text, question.images, template)
    except (ConfigError, DataError) as error:  # the model is too short for it, or has no image
        say(f"no question is put: {error}")
        return ()


def _dtype_of(export: Path) -> torch.dtype:
    """The number format of an export's weights."""
    folder = export / "llm" if (export / "llm").is_dir() else export
    found = {tensor.dtype for tensor in open_weights(folder).values()}
    if len(found) != 1:
        raise CheckpointError(f"{export} mixes number formats: {found}. Export it again.")
    return found.pop()

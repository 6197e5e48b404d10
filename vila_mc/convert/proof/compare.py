"""Prove an export: reload it with transformers in a fresh process and compare what it computes.

Writing files proves nothing: transformers fills what it cannot find with random numbers. So the
export is loaded as its users load it, offline, and its logits and answers are compared with those
of the training model.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.write_export import written_format
from vila_mc.convert.proof.fresh_request import FreshRequest, answers_of_fresh_process
from vila_mc.convert.proof.reloaded import Loading
from vila_mc.errors import CheckpointError
from vila_mc.flow import Microbatch

DEFAULT_TOLERANCE = 1e-3
"""Largest difference of a logit, both sides in fp32."""


@dataclass(frozen=True, slots=True)
class ProofPrompt:
    """A prompt to answer greedily through the exported processor."""

    text: str
    """With ``<image>`` markers; BOS is added."""
    images: tuple[bytes, ...] = ()
    """An image file for each marker."""
    greedy_ids: tuple[int, ...] = ()
    """What the training model answers, token by token; nothing is compared if empty."""
    is_chat: bool = False
    """Whether the text is a user's words, which the chat template of the export makes a prompt of.
    Without ``<image>`` markers the images stand in front."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the training model computes, on the CPU."""

    vocab_size: int
    """Tokens of the vocabulary; as a token id, the placeholder of a visual token."""
    token_ids: Tensor
    """[b, s] int64; ``vocab_size`` at the positions of visual tokens."""
    images: Tensor
    """[n, 3, y, x] uint8, in reading order over the rows."""
    logits: Tensor
    """[b, s, v], v at least the vocabulary; padded columns are not compared."""
    greedy_ids: Tensor | None = None
    """[b, k] int64: how each row goes on greedily, also beyond its end."""
    prompts: tuple[ProofPrompt, ...] = ()
    """Prompts to answer as well, where the format has a processor."""
    max_new_tokens: int = 16
    """Length of the answers to prompts without ``greedy_ids``."""
    is_streamed: bool = False
    """Whether the export is too large for memory, so that its weights are read as they are used."""

    def tensors(self) -> dict[str, Tensor]:
        """For the fresh process."""
        return {
            "token_ids": self.token_ids,
            "images": self.images,
            "logits": self.logits.float(),
            "greedy_ids": torch.zeros(0) if self.greedy_ids is None else self.greedy_ids,
        }

    @classmethod
    def of_microbatch(
        cls,
        batch: Microbatch,
        logits: Tensor,
        model: ModelConfig,
        prompts: tuple[ProofPrompt, ...] = (),
        greedy_ids: Tensor | None = None,
        is_streamed: bool = False,
        vocab_size: int | None = None,
    ) -> Self:
        """The reference of one microbatch and the logits [b, s, v] that training computes on it.

        ``vocab_size`` is that of the other side, where it has fewer tokens. Rows must hold one
        sample each: an exported model does not know where packed samples meet.
        """
        vocab_size = vocab_size or model.language.vocab_size
        tokens = batch.tokens.cpu().clone()
        for row, start in batch.image_starts.tolist():
            tokens[row, start : start + model.visual_tokens()] = vocab_size
        return cls(
            vocab_size,
            tokens,
            batch.images.cpu(),
            logits.detach().float().cpu(),
            greedy_ids,
            prompts,
            is_streamed=is_streamed,
        )


@dataclass(frozen=True, slots=True)
class Differences:
    """How far the reloaded export is from the training model."""

    max_difference: float
    """Largest absolute difference of a logit."""
    mean_difference: float
    """Mean absolute difference of the logits."""
    greedy_equal: bool
    """Whether every greedy continuation and answer is the training model's."""
    answers: tuple[str, ...]
    """Answers to the prompts, in order."""


def compare_export(
    export_dir: Path,
    reference: Reference,
    tolerance: float = DEFAULT_TOLERANCE,
    timeout_s: float = 3600.0,
    *,
    trusts_code: bool = False,
) -> Differences:
    """Reload an export in a fresh, offline process and compare it with the training model.

    The export computes in fp32 on the CPU, whatever its number format is. A tokenizer that was
    converted is compared with the SentencePiece model beside it, too.

    Args:
        export_dir: what ``write_export`` wrote.
        reference: inputs, and what the training model makes of them.
        tolerance: largest difference of a logit to accept. An export in bfloat16 rounds weights:
            give the reference of rounded weights, or a tolerance that allows for it.
        timeout_s: seconds after which the process is stopped.
        trusts_code: whether modelling files that this version of vila_mc did not write may run.

    Returns:
        The differences, where they are within the tolerance.

    Raises:
        CheckpointError: the export does not load cleanly, or computes something else.
    """
    pairs = [(export_dir, reference)]
    (result,) = compare_exports(pairs, tolerance, timeout_s, trusts_code=trusts_code)
    return result


def compare_exports(
    pairs: Sequence[tuple[Path, Reference]],
    tolerance: float = DEFAULT_TOLERANCE,
    timeout_s: float = 3600.0,
    *,
    trusts_code: bool = False,
) -> list[Differences]:
    """``compare_export`` of several exports in one fresh process, which is slow to start."""
    for _, reference in pairs:
        _check_reference(reference)
    requests = [export_request(*pair, trusts_code=trusts_code) for pair in pairs]
    answers = answers_of_fresh_process(requests, timeout_s)
    return [
        _judge(export_dir, answer, tolerance)
        for (export_dir, _), answer in zip(pairs, answers, strict=True)
    ]


def export_request(
    export_dir: Path, reference: Reference, *, trusts_code: bool = False
) -> FreshRequest:
    """What is asked of the fresh process about an export."""
    prompts = []
    files: dict[str, bytes] = {}
    for index, prompt in enumerate(reference.prompts):
        images = {f"image-{index}-{n}": data for n, data in enumerate(prompt.images)}
        files |= images
        prompts.append(
            {
                "text": prompt.text,
                "images": list(images),
                "greedy_ids": list(prompt.greedy_ids),
                "is_chat": prompt.is_chat,
            }
        )
    values = {
        "format": written_format(export_dir).name,
        "vocab_size": reference.vocab_size,
        "loading": dataclasses.asdict(
            Loading(is_streamed=reference.is_streamed, trusts_code=trusts_code)
        ),
        "prompts": prompts,
        "max_new_tokens": reference.max_new_tokens,
    }
    return FreshRequest("export", export_dir, values, reference.tensors(), files)


def compare_adapters(
    base_export: Path,
    adapters: Path,
    reference: Reference,
    tolerance: float = DEFAULT_TOLERANCE,
    timeout_s: float = 3600.0,
) -> Differences:
    """Load adapters beside an export of their base, with PEFT in a fresh process, and compare.

    Raises:
        CheckpointError: they do not load cleanly, or compute something else.
    """
    _check_reference(reference)
    request = export_request(base_export, reference)
    values = {**request.values, "adapters": str(adapters.absolute())}
    (answer,) = answers_of_fresh_process([dataclasses.replace(request, values=values)], timeout_s)
    return _judge(adapters, answer, tolerance)


def _judge(export_dir: Path, output: dict[str, Any], tolerance: float) -> Differences:
    """Refuse what differs too much."""
    if fault := output.get("fault"):
        raise CheckpointError(f"{export_dir} does not verify: {fault}")
    if output["max_difference"] is None:
        output |= {"max_difference": math.nan, "mean_difference": math.nan}
    result = Differences(
        max_difference=output["max_difference"],
        mean_difference=output["mean_difference"],
        greedy_equal=not output["greedy_faults"],
        answers=tuple(output["answers"]),
    )
    figures = f"max {result.max_difference:.3g}, mean {result.mean_difference:.3g}"
    # Written so that NaN fails.
    if not result.max_difference <= tolerance:
        raise CheckpointError(
            f"the logits of {export_dir} differ from the training model's: {figures}, tolerance "
            f"{tolerance:.3g}. Do not use this export; check model and number format, and export "
            "again."
        )
    if not result.greedy_equal:
        raise CheckpointError(
            f"{export_dir} answers differently from the training model: "
            f"{output['greedy_faults'][0]} (logits: {figures}). Do not use this export."
        )
    return result


def _check_reference(reference: Reference) -> None:
    rows, positions = reference.token_ids.shape
    if reference.logits.shape[:2] != (rows, positions):
        raise CheckpointError(
            f"the reference has token ids {[rows, positions]} but logits "
            f"{list(reference.logits.shape)}. Give logits [b, s, v] of the same rows."
        )
    if not torch.isfinite(reference.logits[..., 0]).all():
        raise CheckpointError(
            "the training model's logits are not finite, so nothing can be compared. Export an "
            "earlier checkpoint."
        )

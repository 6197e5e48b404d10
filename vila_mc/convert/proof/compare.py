"""Prove an export: reload it with transformers in a fresh process and compare what it computes.

Writing files proves nothing: transformers fills what it cannot find with random numbers. So the
export is loaded as its users load it, offline, and its logits and answers are compared with those
of the training model.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.formats.write_export import written_format
from vila_mc.errors import CheckpointError
from vila_mc.flow import Microbatch

DEFAULT_TOLERANCE = 1e-3
"""Largest difference of a logit, both sides in fp32."""
_CHILD = "vila_mc.convert.proof.fresh_process"
_SHOWN_LINES = 3


@dataclass(frozen=True, slots=True)
class ProofPrompt:
    """A prompt to answer greedily through the exported processor."""

    text: str
    """With ``<image>`` markers; BOS is added."""
    images: tuple[bytes, ...] = ()
    """An image file for each marker."""
    greedy_ids: tuple[int, ...] = ()
    """What the training model answers, token by token; nothing is compared if empty."""


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

    @classmethod
    def of_microbatch(
        cls,
        batch: Microbatch,
        logits: Tensor,
        model: ModelConfig,
        prompts: tuple[ProofPrompt, ...] = (),
        greedy_ids: Tensor | None = None,
        is_streamed: bool = False,
    ) -> Self:
        """The reference of one microbatch and the logits [b, s, v] that training computes on it.

        Rows must hold one sample each: an exported model does not know where packed samples meet.
        """
        tokens = batch.tokens.cpu().clone()
        for row, start in batch.image_starts.tolist():
            tokens[row, start : start + model.visual_tokens()] = model.language.vocab_size
        return cls(
            model.language.vocab_size,
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

    Returns:
        The differences, where they are within the tolerance.

    Raises:
        CheckpointError: the export does not load cleanly, or computes something else.
    """
    (result,) = compare_exports([(export_dir, reference)], tolerance, timeout_s)
    return result


def compare_exports(
    pairs: Sequence[tuple[Path, Reference]],
    tolerance: float = DEFAULT_TOLERANCE,
    timeout_s: float = 3600.0,
) -> list[Differences]:
    """``compare_export`` of several exports in one fresh process, which is slow to start."""
    for _, reference in pairs:
        _check_reference(reference)
    with tempfile.TemporaryDirectory(prefix="vila-verify-") as folder:
        requests = []
        for number, (export_dir, reference) in enumerate(pairs):
            requests.append(Path(folder) / str(number))
            write_request(requests[-1], reference, written_format(export_dir).name)
        exports = [export_dir for export_dir, _ in pairs]
        _run_child(exports, Path(folder), timeout_s)
        outputs = [_read_result(*pair) for pair in zip(exports, requests, strict=True)]
    return [_judge(*pair, tolerance) for pair in zip(exports, outputs, strict=True)]


def _judge(export_dir: Path, output: dict[str, Any], tolerance: float) -> Differences:
    """Refuse what differs too much."""
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


def write_request(folder: Path, reference: Reference, format: FormatName) -> None:
    """Write what the fresh process reads: request.json, reference.safetensors and the images."""
    folder.mkdir()
    greedy_ids = reference.greedy_ids
    tensors = {
        "token_ids": reference.token_ids.contiguous(),
        "images": reference.images.contiguous(),
        "logits": reference.logits.float().contiguous(),
        "greedy_ids": torch.zeros(0) if greedy_ids is None else greedy_ids.contiguous(),
    }
    save_file(tensors, folder / "reference.safetensors")
    prompts: list[dict[str, Any]] = []
    for index, prompt in enumerate(reference.prompts):
        names = [f"image-{index}-{number}" for number in range(len(prompt.images))]
        for name, data in zip(names, prompt.images, strict=True):
            (folder / name).write_bytes(data)
        prompts.append(
            {"text": prompt.text, "images": names, "greedy_ids": list(prompt.greedy_ids)}
        )
    request = {
        "format": format,
        "vocab_size": reference.vocab_size,
        "is_streamed": reference.is_streamed,
        "prompts": prompts,
        "max_new_tokens": reference.max_new_tokens,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


def _run_child(exports: Sequence[Path], folder: Path, timeout_s: float) -> None:
    """Compare every export with the request of its number."""
    command = [sys.executable, "-m", _CHILD, str(folder)]
    try:
        finished = subprocess.run(
            [*command, *(str(export.absolute()) for export in exports)],
            env=_offline_environment(os.environ, folder),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"verifying {exports[0]} took more than {timeout_s:.0f} s. Use a shorter reference."
        ) from None
    for number, export in enumerate(exports):
        if not (folder / str(number) / "result.json").exists():
            lines = [line for line in finished.stderr.splitlines() if line.strip()]
            shown = " | ".join(lines[-_SHOWN_LINES:])[-600:]
            raise CheckpointError(f"{export} does not load in a fresh process: {shown}")


def _read_result(export_dir: Path, request: Path) -> dict[str, Any]:
    output: dict[str, Any] = json.loads((request / "result.json").read_text(encoding="utf-8"))
    if fault := output.get("fault"):
        raise CheckpointError(f"{export_dir} does not verify: {fault}")
    if output["max_difference"] is None:
        output |= {"max_difference": math.nan, "mean_difference": math.nan}
    return output


def _offline_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """No network, no cached remote code of an earlier export, no GPU."""
    package_root = str(Path(__file__).resolve().parents[3])
    paths = [package_root, environment.get("PYTHONPATH", "")]
    return {
        **environment,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }

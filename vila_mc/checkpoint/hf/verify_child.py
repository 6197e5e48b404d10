"""The fresh process of verify.py: load an export as a user would, compute, compare, report.

Usage: ``python -m vila_mc.checkpoint.hf.verify_child EXPORT_DIR REQUEST_DIR``. Writes result.json
into the request directory.
"""

import io
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

_SEED = 0
_NUM_PROBES = 500
_PROBE_CHARACTERS = (
    "abcdefgh ABC  0123456789\n\t.,:<>/s_'\u00e9\u00df\u4e2d\u6587\U0001f600\u200b\u00a0"
)


def main() -> None:
    """Entry point."""
    export, request = Path(sys.argv[1]), Path(sys.argv[2])
    (request / "result.json").write_text(json.dumps(verify(export, request)), encoding="utf-8")


def verify(export: Path, request: Path) -> dict[str, Any]:
    """Compare an export with the reference in ``request``.

    Returns:
        ``max_difference``, ``mean_difference`` (None if not finite), ``answers`` and
        ``greedy_faults``; or ``fault``, a sentence.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError:
        return {"fault": "transformers is not installed. Install it: pip install 'vila_mc[hf]'."}
    processor = AutoProcessor.from_pretrained(export, trust_remote_code=True)
    model, report = AutoModelForImageTextToText.from_pretrained(
        export, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    faults = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    if faults:
        return {"fault": f"the weights do not match the remote code: {faults}"}
    if fault := _compare_tokenizers(export, processor.tokenizer):
        return {"fault": fault}
    model.eval()
    with torch.inference_mode():
        output = _compare_logits(model, processor, load_file(request / "reference.safetensors"))
        return output | _answer(model, processor, request)


def _compare_logits(model: Any, processor: Any, reference: dict[str, Tensor]) -> dict[str, Any]:
    images = reference["images"]
    pixels = [processor.image_processor.normalise(image) for image in images]
    logits = model(
        input_ids=reference["token_ids"], pixel_values=torch.stack(pixels) if pixels else None
    ).logits
    expected = reference["logits"]
    if expected.shape[-1] < logits.shape[-1]:
        return {
            "fault": f"the reference has logits of {expected.shape[-1]} tokens, the export of "
            f"{logits.shape[-1]}. Give the logits of the whole vocabulary."
        }
    difference = (logits - expected[..., : logits.shape[-1]]).abs()
    largest, mean = difference.max().item(), difference.mean().item()
    is_finite = math.isfinite(largest) and math.isfinite(mean)
    return {
        "max_difference": largest if is_finite else None,
        "mean_difference": mean if is_finite else None,
    }


def _answer(model: Any, processor: Any, request: Path) -> dict[str, Any]:
    content = json.loads((request / "request.json").read_text(encoding="utf-8"))
    answers: list[str] = []
    faults: list[str] = []
    for number, prompt in enumerate(content["prompts"], start=1):
        images = [
            Image.open(io.BytesIO((request / name).read_bytes())) for name in prompt["images"]
        ]
        inputs = processor(text=prompt["text"], images=images or None, return_tensors="pt")
        expected = prompt["greedy_ids"]
        length = len(expected) or content["max_new_tokens"]
        ids = model.generate(**inputs, max_new_tokens=length, do_sample=False)
        given = ids[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(processor.decode(given, skip_special_tokens=True))
        if expected and given != expected:
            faults.append(f"prompt {number} gives tokens {given} instead of {expected}")
    return {"answers": answers, "greedy_faults": faults}


def _compare_tokenizers(export: Path, tokenizer: Any) -> str | None:
    """What differs between the tokenizer and the SentencePiece model beside it, if anything."""
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(export / "tokenizer.model"))
    choose = random.Random(_SEED)
    pieces = [original.id_to_piece(i).replace("\u2581", " ") for i in range(len(original))]
    probes = ["", " ", "  two  ", "</s> <s>", "\n\n"]
    for _ in range(_NUM_PROBES):
        probes.append("".join(choose.choices(_PROBE_CHARACTERS, k=choose.randint(1, 40))))
        probes.append("".join(choose.choices(pieces, k=choose.randint(1, 12))))
    for text in probes:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ids != original.encode(text):
            return f"the tokenizer reads {text!r} as {ids} instead of {original.encode(text)}."
    return None


if __name__ == "__main__":
    main()

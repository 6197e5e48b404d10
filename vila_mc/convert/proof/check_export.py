"""In the fresh process: whether an export computes what its training model does."""

import math
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.proof.fresh_request import TENSORS
from vila_mc.convert.proof.reloaded import (
    LoadedModel,
    Loading,
    ModelFaultError,
    logits_of_vocabulary,
    with_peft_adapters,
)
from vila_mc.data.image_codec import open_image

_SEED = 0
_MARKER = "<image>"
_NUM_PROBES = 500
_PROBE_CHARACTERS = (
    "abcdefgh ABC  0123456789\n\t.,:<>/s_'\u00e9\u00df\u4e2d\u6587\U0001f600\u200b\u00a0"
)


def check_export(export: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Differences of logits (None if not finite), faults of greedy tokens, answers to prompts."""
    reference = load_file(request / TENSORS)
    loading = Loading(**wanted["loading"])
    loaded = find_format(wanted["format"]).load(export, loading, wanted["vocab_size"])
    if "adapters" in wanted:
        loaded.model = with_peft_adapters(loaded.model, Path(wanted["adapters"]))
    output = _compare_logits(loaded, reference)
    output["greedy_faults"] = _compare_greedy(loaded, reference)
    return output | _answer(loaded, export, request, wanted)


def _compare_logits(loaded: LoadedModel, reference: dict[str, Tensor]) -> dict[str, Any]:
    given, expected = logits_of_vocabulary(loaded, reference)
    difference = (given - expected).abs()
    largest, mean = difference.max().item(), difference.mean().item()
    is_finite = math.isfinite(largest) and math.isfinite(mean)
    return {
        "max_difference": largest if is_finite else None,
        "mean_difference": mean if is_finite else None,
    }


def _compare_greedy(loaded: LoadedModel, reference: dict[str, Tensor]) -> list[str]:
    """What differs in the greedy continuation of each row of the reference."""
    expected = reference["greedy_ids"]
    if not expected.numel():
        return []
    given = loaded.greedy(reference["token_ids"], reference["images"], expected.shape[1])
    return [
        f"row {row} goes on with tokens {theirs} instead of {ours}"
        for row, (theirs, ours) in enumerate(
            zip(given.tolist(), expected.tolist(), strict=True), start=1
        )
        if theirs != ours
    ]


def _answer(
    loaded: LoadedModel, export: Path, request: Path, wanted: dict[str, Any]
) -> dict[str, Any]:
    """Answers to prompts through the export's own processor, and how they differ if they do."""
    answers: list[str] = []
    faults: list[str] = []
    processor = loaded.processor
    if processor is None:
        return {"answers": answers}
    _compare_tokenizers(export, processor.tokenizer)
    for number, prompt in enumerate(wanted["prompts"], start=1):
        images = [open_image((request / name).read_bytes(), name) for name in prompt["images"]]
        inputs = _inputs(processor, prompt["text"], images, is_chat=prompt["is_chat"])
        expected = prompt["greedy_ids"]
        length = len(expected) or wanted["max_new_tokens"]
        ids = loaded.model.generate(**inputs, max_new_tokens=length, do_sample=False)
        given = ids[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(processor.decode(given, skip_special_tokens=True))
        if expected and given != expected:
            faults.append(f"prompt {number} gives tokens {given} instead of {expected}")
    return {"answers": answers} | ({"greedy_faults": faults} if faults else {})


def _inputs(processor: Any, text: str, images: list[Any], *, is_chat: bool) -> Any:
    if not is_chat:
        return processor(text=text, images=images or None, return_tensors="pt")
    first, *others = text.split(_MARKER)
    # Where the text does not say where images stand, they stand in front.
    content = [] if others else [part for image in images for part in _in_front(image)]
    content.append({"type": "text", "text": first})
    for image, words in zip(images, others, strict=False):
        content += [{"type": "image", "image": image}, {"type": "text", "text": words}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _in_front(image: Any) -> list[dict[str, Any]]:
    return [{"type": "image", "image": image}, {"type": "text", "text": "\n"}]


def _compare_tokenizers(export: Path, tokenizer: Any) -> None:
    """Compare a converted tokenizer with the SentencePiece model it was made of.

    Raises:
        ModelFaultError: they read some text differently.
    """
    path = export / "tokenizer.model"
    if not path.exists():
        return  # copied from Hugging Face
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    choose = random.Random(_SEED)
    pieces = [original.id_to_piece(i).replace("\u2581", " ") for i in range(len(original))]
    probes = ["", " ", "  two  ", "</s> <s>", "\n\n"]
    for _ in range(_NUM_PROBES):
        probes.append("".join(choose.choices(_PROBE_CHARACTERS, k=choose.randint(1, 40))))
        probes.append("".join(choose.choices(pieces, k=choose.randint(1, 12))))
    for text in probes:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ids != original.encode(text):
            raise ModelFaultError(
                f"the tokenizer reads {text!r} as {ids} instead of {original.encode(text)}."
            )

"""What a rank does in the tests of generation: answer in every way, apart or together."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vila_mc.convert.open_model import open_model
from vila_mc.evaluation.choice import Choice
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.likelihood import likelihoods
from vila_mc.flow import RawImage, RawPiece, RawText
from vila_mc.processes import STORE_FILE
from vila_mc.topology.answering_memory import weight_bytes

CHOICES = {
    "greedy": Choice(),
    "drawn": Choice(temperature=1.5, top_p=0.9, seed=3),
    "beams": Choice(beams=3),
}
NEW_TOKENS = 12


def answers(
    models: Sequence[Path], images: Sequence[Path], tensor: int, meet_in: Path
) -> list[dict[str, Any]]:
    """What each model answers in every way, when ``tensor`` ranks hold it.

    Args:
        models: checkpoints, or directories of Hugging Face.
        images: two.
        tensor: tensor-parallel ranks.
        meet_in: an empty folder, where the ranks meet anew for each model.
    """
    found = []
    for number, path in enumerate(models):
        os.environ[STORE_FILE] = str(meet_in / f"{number}")
        with open_model(path, tensor=tensor) as (asked, _):
            found.append(_answers(asked, images))
        os.environ[STORE_FILE] = str(meet_in / f"{number} in bf16")
        with open_model(path, tensor=tensor, precision="bf16") as (asked, _):
            found[-1] |= _in_bf16(asked, images)
    del os.environ[STORE_FILE]
    return found


def _answers(asked: AskedModel, images: Sequence[Path]) -> dict[str, Any]:
    model, tokenizer = asked.model, asked.tokenizer
    prompts = _prompts(images)
    # What the second rank would draw is something else, as if its GPU had added in another order.
    shift = model.groups.tp.rank()
    found: dict[str, Any] = {
        name: generate(
            model, tokenizer, prompts, NEW_TOKENS, choice=replace(choice, seed=choice.seed + shift)
        )
        for name, choice in CHOICES.items()
    }
    continuations = [[5, 9, 7], [11], found["greedy"][1][:4]]
    weighed = likelihoods(model, tokenizer, prompts[1], continuations)
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    planned = weight_bytes(model.run_config)
    return found | {"likelihoods": [asdict(one) for one in weighed], "bytes": (held, planned)}


def _in_bf16(asked: AskedModel, images: Sequence[Path]) -> dict[str, Any]:
    """How likely the same continuations are, and the bytes of the weights."""
    weighed = likelihoods(asked.model, asked.tokenizer, _prompts(images)[1], [[5, 9, 7], [11]])
    held = sum(weight.numel() * weight.element_size() for weight in asked.model.parameters())
    return {"bf16": [one.log_likelihood for one in weighed], "bytes in bf16": held}


def _prompts(images: Sequence[Path]) -> list[tuple[RawPiece, ...]]:
    """Of different lengths, with no, one and two images."""
    red, blue = (RawImage(path, path.name) for path in images)
    question = RawText("what colour is this?", is_trained=False)
    return [
        (RawText("one two", is_trained=False),),
        (red, question),
        (red, blue, RawText("b", is_trained=False)),
        (blue, question),
    ]

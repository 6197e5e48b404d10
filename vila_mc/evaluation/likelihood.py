"""How likely a model finds given continuations, to choose among several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.evaluation.decoder import Decoder, encode_prompt
from vila_mc.flow import RawPiece
from vila_mc.model.vila_model import VilaModel


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one continuation."""

    log_likelihood: float
    """Natural logarithm of its probability behind the prompt."""
    tokens: int
    is_greedy: bool
    """Whether it is what a greedy answer would begin with."""


def likelihoods(
    model: VilaModel,
    tokenizer: Tokenizer,
    prompt: Sequence[RawPiece],
    continuations: Sequence[Sequence[int]],
) -> list[Likelihood]:
    """Of continuations of a prompt, which is read once for all of them.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        prompt: as ``generate`` takes it.
        continuations: token ids of each.

    Raises:
        ConfigError: the longest does not fit the model's positions.
        DataError: an image cannot be used, or a continuation has no token.
    """
    if not continuations or not all(continuations):
        raise DataError("a continuation has no token. Give each some text.")
    encoded = encode_prompt(prompt, tokenizer)
    decoder = Decoder(model, [encoded], max(map(len, continuations)))
    decoder.take([0] * len(continuations))
    first_b1v = decoder.logits_bv[:, None]
    logits_bsv = torch.cat([first_b1v, decoder.read_ahead(continuations)[:, :-1]], dim=1)
    scores_bsv = logits_bsv.double().log_softmax(-1).cpu()
    return [
        _likelihood(scores_sv[: len(ids)], ids)
        for scores_sv, ids in zip(scores_bsv, continuations, strict=True)
    ]


def _likelihood(scores_sv: torch.Tensor, ids: Sequence[int]) -> Likelihood:
    expected = torch.tensor(ids)
    total = scores_sv.gather(1, expected[:, None]).sum()
    return Likelihood(float(total), len(ids), bool((scores_sv.argmax(-1) == expected).all()))

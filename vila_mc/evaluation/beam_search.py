"""Beam search: the likeliest answer among those whose beginnings were likely."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import Choice
from vila_mc.evaluation.decoder import Decoder


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    log_likelihood: float

    def score(self, length_penalty: float) -> float:
        """What ended answers compete by."""
        return float(self.log_likelihood / len(self.tokens) ** length_penalty)


def search(
    decoder: Decoder, max_new_tokens: int, end: AnswerEnd, choice: Choice
) -> tuple[int, ...]:
    """The answer to one prompt.

    Beginnings compete by their log-likelihood, ended answers by that over a power of their length.
    It ends when as many answers have ended as there are beams and no beginning is better than the
    worst of them.

    Args:
        decoder: has read one prompt.
        max_new_tokens: longest answer.
        end: what ends an answer.
        choice: beginnings that are kept, and how length counts.

    Returns:
        Token ids of the best answer.
    """
    beams, penalty = choice.beams, choice.length_penalty
    going = [_Answer((), 0.0)]
    ended: list[_Answer] = []
    for position in range(max_new_tokens):
        candidates = _continuations(decoder, going, 2 * beams)
        is_last = position == max_new_tokens - 1
        kept: list[tuple[int, _Answer]] = []
        for rank, (row, answer) in enumerate(candidates):
            if end.is_reached(answer.tokens) or is_last:
                if rank < beams:
                    ended.append(answer)
            elif len(kept) < beams:
                kept.append((row, answer))
        ended = sorted(ended, key=lambda one: one.score(penalty), reverse=True)[:beams]
        if is_last or not kept:
            break
        if len(ended) == beams and kept[0][1].score(penalty) <= ended[-1].score(penalty):
            break
        decoder.take([row for row, _ in kept])
        going = [answer for _, answer in kept]
        decoder.read([answer.tokens[-1] for answer in going])
    return ended[0].tokens


def _continuations(
    decoder: Decoder, going: Sequence[_Answer], count: int
) -> list[tuple[int, _Answer]]:
    """The likeliest ones, best first, each with the row that it continues."""
    known = torch.tensor([[answer.log_likelihood] for answer in going], dtype=torch.float64)
    totals_bv = decoder.logits_bv.double().log_softmax(-1).cpu() + known
    best = totals_bv.flatten().topk(min(count, totals_bv.numel()))
    found = []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row, token = divmod(place, totals_bv.size(1))
        found.append((row, _Answer((*going[row].tokens, token), total)))
    return found

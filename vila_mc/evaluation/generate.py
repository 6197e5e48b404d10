"""Greedy answers of a whole model."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate, positions_of
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.flow import Microbatch, Piece, RawPiece, RawSample
from vila_mc.model.vila_model import VilaModel


def generate(
    model: VilaModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[RawPiece]],
    max_new_tokens: int,
    end: AnswerEnd | None = None,
) -> list[tuple[int, ...]]:
    """Continue each prompt greedily to the end of its answer.

    Every token recomputes the whole sequence, which suits short answers; there is no cache.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        prompts: pieces of each prompt, as ``vila_mc.data.chat_templates.prompt`` makes them.
        max_new_tokens: longest answer.
        end: what ends an answer; EOS if None.

    Returns:
        Token ids of each answer; what ends it is the last one where it was reached.

    Raises:
        ConfigError: prompt and answer do not fit the model's positions.
        DataError: an image is missing or cannot be decoded.
    """
    shape = model.run_config.model
    encoded = [_encode(pieces, tokenizer) for pieces in prompts]
    lengths = [_positions(pieces, shape) for pieces in encoded]
    longest = max(lengths) + max_new_tokens
    if longest > shape.language.max_positions:
        raise ConfigError(
            f"a prompt of {max(lengths)} positions and {max_new_tokens} new tokens exceed "
            f"model.language.max_positions {shape.language.max_positions}. Shorten one of them."
        )
    device = next(model.parameters()).device
    batch = collate([[pieces] for pieces in encoded], shape, longest, needs_images=True).to(device)
    answers: list[list[int]] = [[] for _ in prompts]
    end = end or AnswerEnd(tokenizer, frozenset({tokenizer.eos_id}))
    unfinished = set(range(len(prompts)))
    rows, ends = torch.arange(len(prompts), device=device), torch.tensor(lengths, device=device)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            used = int(ends.max())
            logits_bsv = model(_first_positions(batch, used), with_loss=False)
            best = logits_bsv[rows, ends - 1].argmax(-1)
            batch.tokens[rows, ends] = best
            ends = ends + 1
            for row in list(unfinished):
                answers[row].append(int(best[row]))
                if end.is_reached(answers[row]):
                    unfinished.discard(row)
            if not unfinished:
                break
    return [tuple(answer) for answer in answers]


def prompt_positions(pieces: Sequence[RawPiece], tokenizer: Tokenizer, shape: ModelConfig) -> int:
    """Positions that a prompt takes in the sequence. Raises DataError: an image cannot be used."""
    return _positions(_encode(pieces, tokenizer), shape)


def _encode(pieces: Sequence[RawPiece], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    sample = RawSample(pieces=tuple(pieces), place="prompt")
    try:
        return encode_sample(sample, tokenizer, DEFAULT_MAX_PIXELS).pieces
    except RejectionError as error:
        raise DataError(f"a prompt cannot be used: {error}") from None


def _positions(pieces: Sequence[Piece], shape: ModelConfig) -> int:
    return sum(positions_of(piece, shape) for piece in pieces)


def _first_positions(batch: Microbatch, length: int) -> Microbatch:
    return replace(batch, tokens=batch.tokens[:, :length], labels=batch.labels[:, :length])

"""Greedy answers of a whole model."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import Microbatch, Piece, RawPiece, RawSample, TextPiece
from vila_mc.model.vila_model import VilaModel


def generate(
    model: VilaModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[RawPiece]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[tuple[int, ...]]:
    """Continue each prompt greedily until EOS.

    Every token recomputes the whole sequence, which suits short answers; there is no cache.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        prompts: pieces of each prompt, as ``vila_mc.data.chat_templates.prompt`` makes them.
        max_new_tokens: longest answer.
        stop_ids: tokens that end an answer as EOS does, see ``chat_templates.stop_ids``.

    Returns:
        Token ids of each answer; EOS or a stop token is the last one where it was reached.

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
    ends_answer = {tokenizer.eos_id, *stop_ids}
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
                if answers[row][-1] in ends_answer:
                    unfinished.discard(row)
            if not unfinished:
                break
    return [tuple(answer) for answer in answers]


def _encode(pieces: Sequence[RawPiece], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    sample = RawSample(pieces=tuple(pieces), place="prompt")
    try:
        return encode_sample(sample, tokenizer, DEFAULT_MAX_PIXELS).pieces
    except RejectionError as error:
        raise DataError(f"a prompt cannot be used: {error}") from None


def _positions(pieces: Sequence[Piece], shape: ModelConfig) -> int:
    """Positions a prompt takes in the sequence."""
    return sum(
        len(piece.ids) if isinstance(piece, TextPiece) else shape.visual_tokens()
        for piece in pieces
    )


def _first_positions(batch: Microbatch, length: int) -> Microbatch:
    return replace(batch, tokens=batch.tokens[:, :length], labels=batch.labels[:, :length])

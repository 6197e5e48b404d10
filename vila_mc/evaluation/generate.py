"""Answers of a whole model."""

from collections.abc import Iterator, Sequence

from vila_mc.config.model import ModelConfig
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.beam_search import search
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.decoder import Decoder, encode_prompt, encoded_positions
from vila_mc.flow import Piece, RawPiece, TextPiece
from vila_mc.model.vila_model import VilaModel


def generate(
    model: VilaModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[RawPiece]],
    max_new_tokens: int,
    end: AnswerEnd | None = None,
    choice: Choice = GREEDY,
) -> list[tuple[int, ...]]:
    """Continue each prompt to the end of its answer.

    What one is answered does not depend on the others.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        prompts: pieces of each prompt, as ``vila_mc.data.chat_templates.prompt`` makes them.
        max_new_tokens: longest answer.
        end: what ends an answer; EOS if None.
        choice: how tokens are chosen.

    Returns:
        Token ids of each answer; what ends it is the last one where it was reached.

    Raises:
        ConfigError: prompt and answer do not fit the model's positions.
        DataError: an image is missing or cannot be decoded.
    """
    end = end or _eos(tokenizer)
    if choice.beams > 1:
        encoded = [encode_prompt(pieces, tokenizer) for pieces in prompts]
        return [
            search(Decoder(model, [one], max_new_tokens), max_new_tokens, end, choice.beams)
            for one in encoded
        ]
    answers: list[list[int]] = [[] for _ in prompts]
    for row, token in stream(model, tokenizer, prompts, max_new_tokens, end, choice):
        answers[row].append(token)
    return [tuple(answer) for answer in answers]


def stream(
    model: VilaModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[RawPiece]],
    max_new_tokens: int,
    end: AnswerEnd | None = None,
    choice: Choice = GREEDY,
) -> Iterator[tuple[int, int]]:
    """``generate``, token after token, without beams.

    Yields:
        Number of a prompt, and the next token of its answer.
    """
    assert choice.beams == 1, "beams are known at the end alone"
    end = end or _eos(tokenizer)
    encoded = [encode_prompt(pieces, tokenizer) for pieces in prompts]
    decoder = Decoder(model, encoded, max_new_tokens)
    generators = [choice.generator(_text_ids(pieces)) for pieces in encoded]
    answers: list[list[int]] = [[] for _ in prompts]
    going = [*range(len(prompts))]
    for position in range(max_new_tokens):
        drawn = choice.next_tokens(decoder.logits_bv, [generators[row] for row in going])
        tokens = decoder.agree(drawn)
        for row, token in zip(going, tokens, strict=True):
            answers[row].append(token)
            yield row, token
        left = [at for at, row in enumerate(going) if not end.is_reached(answers[row])]
        if not left or position == max_new_tokens - 1:
            return
        if len(left) < len(going):
            decoder.take(left)
            going, tokens = [going[at] for at in left], [tokens[at] for at in left]
        decoder.read(tokens)


def prompt_positions(pieces: Sequence[RawPiece], tokenizer: Tokenizer, shape: ModelConfig) -> int:
    """Positions that a prompt takes in the sequence. Raises DataError: an image cannot be used."""
    return encoded_positions(encode_prompt(pieces, tokenizer), shape)


def _eos(tokenizer: Tokenizer) -> AnswerEnd:
    return AnswerEnd(tokenizer, frozenset({tokenizer.eos_id}))


def _text_ids(pieces: Sequence[Piece]) -> list[int]:
    return [int(i) for piece in pieces if isinstance(piece, TextPiece) for i in piece.ids]

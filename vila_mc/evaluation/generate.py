"""Answers of a whole model."""

from collections.abc import Sequence

from vila_mc.config.model import ModelConfig
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering, Continuation
from vila_mc.evaluation.beam_search import search
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.decoder import Decoder, encode_prompt, encoded_positions
from vila_mc.flow import RawPiece
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
            search(Decoder(model, [one], max_new_tokens), max_new_tokens, end, choice)
            for one in encoded
        ]
    answering = Answering(
        model,
        [
            Continuation(encode_prompt(pieces, tokenizer), max_new_tokens, end, choice)
            for pieces in prompts
        ],
    )
    while answering.going:
        answering.step()
    return [tuple(answer) for answer in answering.answers]


def prompt_positions(pieces: Sequence[RawPiece], tokenizer: Tokenizer, shape: ModelConfig) -> int:
    """Positions that a prompt takes in the sequence. Raises DataError: an image cannot be used."""
    return encoded_positions(encode_prompt(pieces, tokenizer), shape)


def _eos(tokenizer: Tokenizer) -> AnswerEnd:
    return AnswerEnd(tokenizer, frozenset({tokenizer.eos_id}))

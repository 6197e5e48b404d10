"""Puts the items of a task to a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.decoder import encode_prompt, encoded_positions
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.likelihood import likelihoods
from vila_mc.evaluation.sharing import Sharing, length_of
from vila_mc.evaluation.tasks.demonstrations import NONE, Demonstrations
from vila_mc.evaluation.tasks.prompts import (
    prompt_pieces,
    space_before_answer,
    stops_of,
    written,
)
from vila_mc.evaluation.tasks.task import TEXT_FORMS, Form, Item, Task
from vila_mc.flow import ImagePiece, Piece, RawImage, RawPiece, RawText, TextPiece


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said to an item."""

    item: Item
    answer: str
    is_cut: bool = False
    """Whether it would have gone on."""
    prompt: str = ""
    """All that was read, see ``written``."""
    shown: tuple[Item, ...] = ()
    """The demonstrations in it."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    item: Item
    shown: tuple[Item, ...]
    pieces: tuple[RawPiece, ...]

    def answered(self, answer: str, is_cut: bool = False) -> Answered:
        return Answered(self.item, answer, is_cut, written(self.pieces), self.shown)


def ask_items(
    asked: AskedModel,
    task: Task,
    items: Sequence[Item],
    *,
    batch: int,
    max_new_tokens: int,
    choice: Choice = GREEDY,
    demonstrations: Demonstrations = NONE,
) -> Iterator[Answered]:
    """Ask, in order.

    Where an item's demonstrations do not all fit the model's positions, the first are left out.

    Args:
        asked: whom.
        task: how its items are asked.
        items: what.
        batch: items that are answered together.
        max_new_tokens: longest answer.
        choice: how tokens are chosen.
        demonstrations: what stands in front of each.

    Raises:
        ConfigError: an item and its answer do not fit the model's positions.
        DataError: an image cannot be decoded.
    """
    form = demonstrations.shots.form
    if task.is_text and form not in TEXT_FORMS:
        form = "text"
    end = AnswerEnd(asked.tokenizer, frozenset({asked.tokenizer.eos_id}))
    if form not in TEXT_FORMS:
        end = AnswerEnd.of(asked.template, asked.tokenizer)
        end = replace(end, ids=end.ids | {asked.tokenizer.eos_id})
    for start in range(0, len(items), batch):
        chunk = items[start : start + batch]
        if task.asks == "letter":
            yield from (_choose(asked, task, item, demonstrations, form) for item in chunk)
            continue
        stops = (*end.stops, *task.stops, *stops_of(form, chunk[0]))
        prompts = [
            _fitting(asked, task, item, demonstrations, form, max_new_tokens) for item in chunk
        ]
        pieces = [one.pieces for one in prompts]
        stopping = replace(end, stops=stops)
        answers = generate(asked.model, asked.tokenizer, pieces, max_new_tokens, stopping, choice)
        for one, ids in zip(prompts, answers, strict=True):
            yield one.answered(stopping.words(ids), is_cut=not stopping.is_reached(ids))


def sharing_of(asked: AskedModel, batch: int) -> Sharing[Item]:
    """How copies of a model share items, ``batch`` at a time."""
    shape = asked.model.run_config.model
    return Sharing(
        batch,
        length=lambda item: length_of(item, shape),
        name=lambda item: item.id,
    )


def _fitting(
    asked: AskedModel,
    task: Task,
    item: Item,
    demonstrations: Demonstrations,
    form: Form,
    room: int,
) -> _Prompt:
    """A prompt with as many of the demonstrations as there is room for. Raises ConfigError."""
    shape = asked.model.run_config.model
    shown = tuple(demonstrations.of(item))
    is_blind = demonstrations.shots.is_blind
    while True:
        pieces = prompt_pieces(asked.template, task, item, shown, form, is_blind=is_blind)
        encoded = encode_prompt(pieces, asked.tokenizer)
        taken = encoded_positions(encoded, shape)
        if taken + room <= shape.language.max_positions:
            return _Prompt(item, shown, _looked_at(pieces, encoded))
        if not shown:
            raise ConfigError(
                f"question {item.id} of {task.name} takes {taken} positions and its answer {room}, "
                f"and model.language.max_positions is {shape.language.max_positions}. Allow fewer "
                "new tokens, or ask a model with more positions."
            )
        shown = shown[1:]


def _looked_at(pieces: Sequence[RawPiece], encoded: Sequence[Piece]) -> tuple[RawPiece, ...]:
    """The pieces with the sides of their images, which are not decoded for them once more."""
    sides = iter([piece.sides for piece in encoded if isinstance(piece, ImagePiece)])
    return tuple(
        replace(piece, sides=next(sides)) if isinstance(piece, RawImage) else piece
        for piece in pieces
    )


def _choose(
    asked: AskedModel, task: Task, item: Item, demonstrations: Demonstrations, form: Form
) -> Answered:
    """The letter whose text is likeliest behind the question; the first of equals."""
    space = space_before_answer(asked.template, form)
    texts = [text if form in TEXT_FORMS else space + text.strip() for text in item.choices.values()]
    room = 1 + max(len(asked.tokenizer.encode(text)) for text in texts)
    prompt = _fitting(asked, task, item, demonstrations, form, room)
    continuations = [_continuation(asked.tokenizer, prompt.pieces, text, form) for text in texts]
    found = likelihoods(asked.model, asked.tokenizer, prompt.pieces, continuations)
    scores = [
        one.log_likelihood / (len(text.strip()) if task.per_character else 1)
        for one, text in zip(found, texts, strict=True)
    ]
    return prompt.answered([*item.choices][scores.index(max(scores))])


def _continuation(
    tokenizer: Tokenizer, pieces: Sequence[RawPiece], text: str, form: Form
) -> list[int]:
    """Token ids of an answer behind a prompt: in the chat template those of training."""
    last = pieces[-1]
    if form in TEXT_FORMS and isinstance(last, RawText):
        return continuation(tokenizer, last.text, text)
    trained = encode_prompt([*pieces, RawText(text, is_trained=True)], tokenizer)[-1]
    assert isinstance(trained, TextPiece)
    return [int(token) for token in trained.ids]


def continuation(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Token ids of a text behind another, as they are where both are one text (lm-eval's rule)."""
    return tokenizer.encode(before + text)[len(tokenizer.encode(before)) :]

"""Puts the items of a task to a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vila_mc.data.chat_templates import prompt
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.likelihood import likelihoods
from vila_mc.evaluation.tasks.task import Item, Task
from vila_mc.flow import RawPiece, RawText


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said to an item."""

    item: Item
    answer: str
    is_cut: bool = False
    """Whether it would have gone on."""


def ask_items(
    asked: AskedModel,
    task: Task,
    items: Sequence[Item],
    *,
    batch: int,
    max_new_tokens: int,
    choice: Choice = GREEDY,
) -> Iterator[Answered]:
    """Ask, in order.

    Args:
        asked: whom.
        task: how its items are asked.
        items: what.
        batch: items that are answered together.
        max_new_tokens: longest answer.
        choice: how tokens are chosen.

    Raises:
        ConfigError: an item and its answer do not fit the model's positions.
        DataError: an image cannot be decoded.
    """
    end = AnswerEnd(asked.tokenizer, frozenset({asked.tokenizer.eos_id}))
    if not task.is_text:
        end = AnswerEnd.of(asked.template, asked.tokenizer)
    end = replace(end, stops=(*end.stops, *task.stops))
    for start in range(0, len(items), batch):
        chunk = items[start : start + batch]
        if task.asks == "letter":
            yield from (Answered(item, _likeliest_letter(asked, task, item)) for item in chunk)
            continue
        prompts = [_pieces(asked, task, item) for item in chunk]
        answers = generate(asked.model, asked.tokenizer, prompts, max_new_tokens, end, choice)
        for item, ids in zip(chunk, answers, strict=True):
            yield Answered(item, end.words(ids), is_cut=not end.is_reached(ids))


def _pieces(asked: AskedModel, task: Task, item: Item) -> tuple[RawPiece, ...]:
    if task.is_text:
        return (*item.images, RawText(item.question, is_trained=False))
    return prompt(asked.template, item.question, item.images)


def _likeliest_letter(asked: AskedModel, task: Task, item: Item) -> str:
    """The letter whose text is likeliest behind the question; the first of equals."""
    continuations = [
        continuation(asked.tokenizer, item.question, text) for text in item.choices.values()
    ]
    pieces = _pieces(asked, task, item)
    found = likelihoods(asked.model, asked.tokenizer, pieces, continuations)
    scores = [one.log_likelihood for one in found]
    return [*item.choices][scores.index(max(scores))]


def continuation(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Token ids of a text behind another, as they are where both are one text (lm-eval's rule)."""
    return tokenizer.encode(before + text)[len(tokenizer.encode(before)) :]

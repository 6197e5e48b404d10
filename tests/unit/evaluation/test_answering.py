"""Answers that come together are those that come alone, and what is shown early is the answer."""

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.evaluation.conftest import Subject
from tests.unit.evaluation.test_generate import prompts
from vila_mc.data.chat_templates import BUILT_IN, Template
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering, Continuation
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.decoder import encode_prompt
from vila_mc.evaluation.speech import Speech
from vila_mc.flow import RawText

CHOICES = [GREEDY, Choice(2.0, seed=1), GREEDY, Choice(2.0, 0.9, seed=2), Choice(2.0, seed=1)]
LENGTHS = [4, 9, 6, 12, 30]


def continuations(subject: Subject) -> list[Continuation]:
    """Prompts of several lengths, each with an answer of its own length, end and choice. The last
    two fill the model's positions, one with its prompt, the other with its answer."""
    end = AnswerEnd.of("vicuna_v1", subject.tokenizer)
    long = (RawText("word " * 55, is_trained=False),)
    asked = [encode_prompt(one, subject.tokenizer) for one in [*prompts(subject)[:4], long]]
    ends = [end, replace(end, stops=("a",)), end, end, end]
    return [Continuation(*one) for one in zip(asked, LENGTHS, ends, CHOICES, strict=True)]


def answered(subject: Subject, asked: list[Continuation]) -> list[list[int]]:
    answering = Answering(subject.model, asked)
    while answering.going:
        answering.step()
    return answering.answers


def test_each_is_answered_as_alone(subject: Subject) -> None:
    asked = continuations(subject)
    together = answered(subject, asked)
    assert together == [answered(subject, [one])[0] for one in asked]
    assert [len(answer) for answer in together][2:] == LENGTHS[2:]
    assert len({tuple(answer[:4]) for answer in together}) > 3  # or it would prove nothing


def test_a_long_prompt_and_a_long_answer_go_together(subject: Subject) -> None:
    """Each alone fills the model's positions; together they take no more."""
    end = AnswerEnd.of("vicuna_v1", subject.tokenizer)
    short = encode_prompt([RawText("one", is_trained=False)], subject.tokenizer)
    long = encode_prompt([RawText("word " * 60, is_trained=False)], subject.tokenizer)
    limit = subject.model.run_config.model.language.max_positions
    counts = [len(pieces[0].ids) for pieces in (short, long)]
    asked = [
        Continuation(pieces, limit - count, end, GREEDY)
        for pieces, count in zip((short, long), counts, strict=True)
    ]
    assert counts[1] > 200
    assert answered(subject, asked) == [answered(subject, [one])[0] for one in asked]


@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_dropped_changes_no_other(steps: int, subject: Subject) -> None:
    asked = continuations(subject)
    expected = answered(subject, asked)
    answering = Answering(subject.model, asked)
    for _ in range(steps):
        answering.step()
    answering.drop(1)
    answering.drop(3)
    while answering.going:
        answering.step()
    assert [len(answering.answers[row]) for row in (1, 3)] == [steps, steps]
    for row in (0, 2, 4):
        assert answering.answers[row] == expected[row]


TEXT_AND_TOKEN = Template(first="", next="", close=" ", end="\n### {eos}")


@pytest.mark.parametrize("stops", [(), ("ab", "zz "), ("\n",)])
@pytest.mark.parametrize("template", [*map(BUILT_IN.get, ("plain", "llama_2")), TEXT_AND_TOKEN])
def test_what_is_shown_early_is_the_answer(
    template: Any, stops: tuple[str, ...], subject: Subject
) -> None:
    """Of any tokens: bytes of a character one by one, ends begun and not reached, unknown ids."""
    tokenizer = subject.tokenizer
    end = replace(AnswerEnd.of(template, tokenizer), stops=stops)
    draw = random.Random(0)
    texts = ["é", "日本", " ", "\n", "###", "\n##", "a", "ab", "z", "zz", " word", "##"]
    early = 0
    for _ in range(300):
        said = "".join(draw.choices(texts, k=draw.randint(1, 9)))
        ids = [*tokenizer.encode(said), *draw.choices([tokenizer.eos_id, 399, 500], k=2)]
        speech, shown = Speech(end), ""
        for token in ids:
            shown += speech.hear(token)
            assert end.words(speech.tokens).startswith(shown)
            if end.is_reached(speech.tokens):
                break
        early += len(shown)
        assert shown + speech.finish() == end.words(speech.tokens)
        assert speech.is_cut == (not end.is_reached(speech.tokens))
    assert early > 300

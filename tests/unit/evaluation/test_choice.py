"""Tokens that are drawn, found by beam search or only weighed."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.evaluation.conftest import Subject
from tests.unit.evaluation.test_generate import ask, prompts, recomputed
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.beam_search import search
from vila_mc.evaluation.choice import Choice
from vila_mc.evaluation.decoder import Decoder, encode_prompt
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.likelihood import likelihoods
from vila_mc.flow import Piece, RawPiece, RawText, TextPiece


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p is 1.5"),
        ({"top_p": 0.5}, "takes the likeliest token"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"length_penalty": 0.0}, "length_penalty is 0.0, but there are no beams"),
        ({"length_penalty": math.nan, "beams": 2}, "length_penalty is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**values)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 1.0])
def test_probabilities_are_those_of_transformers(top_p: float) -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1)).double()
    expected = warpers.TemperatureLogitsWarper(0.7)(None, logits)
    if top_p < 1:
        expected = warpers.TopPLogitsWarper(top_p)(None, expected)
    found = Choice(temperature=0.7, top_p=top_p).probabilities(logits)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected.softmax(-1))


def test_a_temperature_next_to_nothing_takes_the_likeliest() -> None:
    logits, choice = torch.tensor([[1.0, 30.0, 2.0]]), Choice(temperature=1e-310)
    assert choice.probabilities(logits).tolist() == [[0.0, 1.0, 0.0]]
    assert choice.next_tokens(logits, [choice.generator([3])]) == [1]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    choice = Choice(temperature=1.0, top_p=0.9)
    drawn = choice.next_tokens(logits, [choice.generator([3])] * 4000)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert shares[3] == 0


def test_what_is_drawn_follows_from_seed_and_prompt(subject: Subject) -> None:
    def drawn(seed: int, which: Sequence[int] = (0, 1, 2, 3)) -> list[tuple[int, ...]]:
        asked = [prompts(subject)[i] for i in which]
        choice = Choice(temperature=2.0, seed=seed)
        return generate(subject.model, subject.tokenizer, asked, 8, choice=choice)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, (2, 0)) == [drawn(1)[2], drawn(1)[0]]


class Table:
    """Plays a decoder: what comes next depends on the tokens so far."""

    def __init__(self, words: int, seed: int) -> None:
        self.words, self.seed = words, seed
        self.rows: list[tuple[int, ...]] = [()]

    def scores(self, beginning: tuple[int, ...]) -> Tensor:
        number = sum((token + 1) * (self.words + 1) ** i for i, token in enumerate(beginning))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        return (2 * torch.randn(self.words, generator=generator)).log_softmax(-1)

    @property
    def logits_bv(self) -> Tensor:
        return torch.stack([self.scores(row) for row in self.rows])

    def take(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def read(self, tokens: Sequence[int]) -> None:
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens, strict=True)]


class EndsAtZero:
    def is_reached(self, answer: Sequence[int]) -> bool:
        return answer[-1] == 0


def all_answers(words: int, longest: int) -> list[tuple[int, ...]]:
    answers = []
    for length in range(1, longest + 1):
        for answer in itertools.product(range(words), repeat=length):
            ends = answer[-1] == 0 or length == longest
            if ends and 0 not in answer[:-1]:
                answers.append(answer)
    return answers


def score(table: Table, answer: tuple[int, ...], length_penalty: float = 1.0) -> float:
    parts = [table.scores(answer[:i])[token] for i, token in enumerate(answer)]
    return float(sum(parts)) / len(answer) ** length_penalty


@pytest.mark.parametrize("seed", [9, 11, 19, 25, 30, 31])
def test_enough_beams_find_the_best_of_all_answers(seed: int) -> None:
    """Whatever length is worth; of the mean where neither greed nor the sum gives it."""
    answers, found = all_answers(4, 3), dict[float, tuple[int, ...]]()
    for penalty in (1.0, 0.0, -2.0, 3.0):
        choice = Choice(beams=64, length_penalty=penalty)
        found[penalty] = search(Table(words=4, seed=seed), 3, EndsAtZero(), choice)
        best = max(answers, key=lambda answer: score(Table(4, seed), answer, penalty))
        assert found[penalty] == best
    assert search(Table(4, seed), 3, EndsAtZero(), Choice()) != found[1.0]
    assert found[0.0] != found[1.0]
    assert len(found[-2.0]) <= len(found[3.0])


def test_more_beams_find_likelier_answers_than_greed() -> None:
    means = []
    for beams in (1, 3):
        choice = Choice(beams=beams)
        found = [search(Table(6, seed), 6, EndsAtZero(), choice) for seed in range(30)]
        means.append(sum(score(Table(6, s), a) for s, a in enumerate(found)) / 30)
    assert means[1] > means[0]


class Anew:
    """Plays a decoder: each beginning is read with its prompt, without what was kept."""

    def __init__(self, subject: Subject, asked: Sequence[RawPiece]) -> None:
        self.subject, self.prompt = subject, _encoded(subject, asked)
        self.rows: list[tuple[int, ...]] = [()]

    @property
    def logits_bv(self) -> Tensor:
        return torch.cat([self._logits(row) for row in self.rows])

    def _logits(self, beginning: tuple[int, ...]) -> Tensor:
        read = (*self.prompt, TextPiece(np.array(beginning, np.int32), is_trained=False))
        return Decoder(self.subject.model, [read if beginning else self.prompt], 0).logits_bv

    def take(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def read(self, tokens: Sequence[int]) -> None:
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens, strict=True)]


def test_beams_of_a_model_are_each_read_right(subject: Subject) -> None:
    """The answers are those of a search whose every beam reads its own beginning anew."""
    end = AnswerEnd(subject.tokenizer, frozenset({subject.tokenizer.eos_id}))
    choice = Choice(beams=4)
    answers = generate(subject.model, subject.tokenizer, prompts(subject), 8, end, choice)
    assert answers == [search(Anew(subject, asked), 8, end, choice) for asked in prompts(subject)]
    assert answers != ask(subject, prompts(subject), 8)  # or one beam would do as well


def test_likelihoods_are_those_of_reading_each_alone(subject: Subject) -> None:
    asked = prompts(subject)[2]
    answer = recomputed(subject, asked, 5)
    wrong = (*answer[:3], answer[3] + 1)
    found = likelihoods(subject.model, subject.tokenizer, asked, [answer, wrong, answer[:2]])
    assert [one.is_greedy for one in found] == [True, False, True]
    assert [one.tokens for one in found] == [5, 4, 2]
    for ids, together in zip((answer, wrong, answer[:2]), found, strict=True):
        logs, decoder = 0.0, Decoder(subject.model, [_encoded(subject, asked)], 6)
        for token in ids:
            logs += float(decoder.logits_bv[0].double().log_softmax(-1)[token])
            decoder.read([token])
        assert together.log_likelihood == pytest.approx(logs, abs=1e-5)


def test_no_continuation_is_refused(subject: Subject) -> None:
    for continuations in ([], [()], [(3,), ()]):
        with pytest.raises(DataError, match="has no token"):
            likelihoods(subject.model, subject.tokenizer, prompts(subject)[0], continuations)


def test_stop_words_end_an_answer(subject: Subject) -> None:
    asked = [(RawText("one two", is_trained=False),)]
    (whole,) = ask(subject, asked, 12)
    end = AnswerEnd(subject.tokenizer, frozenset({subject.tokenizer.eos_id}))
    text = end.words(whole)
    stop = text[len(text) // 2 :][:3]
    stopping = AnswerEnd(subject.tokenizer, end.ids, stops=(stop, "never said"))
    (cut,) = generate(subject.model, subject.tokenizer, asked, 12, stopping)
    assert len(cut) < len(whole)
    assert stop in subject.tokenizer.decode([*cut])
    assert stopping.words(cut) == text[: text.index(stop)].strip()


def _encoded(subject: Subject, asked: Sequence[RawPiece]) -> tuple[Piece, ...]:
    return encode_prompt(asked, subject.tokenizer)

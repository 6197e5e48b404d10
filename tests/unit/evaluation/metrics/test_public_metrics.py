"""Metrics of public tasks by cases reckoned by hand, each beside the rule that it is about.

``benchmarks/public_metrics.py`` compares them with the public code on thousands of random answers.
"""

import math
import random
from collections.abc import Sequence
from statistics import pstdev

import pytest

from vila_mc.evaluation.metrics.captions import caption_words, cider
from vila_mc.evaluation.metrics.choices import read_mmbench, read_science_qa, read_seed
from vila_mc.evaluation.metrics.human_answers import Form, human_accuracy, submitted
from vila_mc.evaluation.metrics.texts import anls, drop_score, is_equal
from vila_mc.evaluation.metrics.yes_no import (
    Reading,
    f1_influences,
    mme_score,
    pope_score,
    read_mme,
    read_pope,
)


@pytest.mark.parametrize(
    ("same", "expected"),
    # Of those who gave the answer each has one other less: 2 people -> 2 x 1/3 + 8 x 2/3.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_accuracy_leaves_one_person_out(same: int, expected: float) -> None:
    people = ["red"] * same + [f"other {number}" for number in range(10 - same)]
    assert human_accuracy("red", people, "official") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "normalized", "evalai"),
    [
        ("The  Cat", "cat", "cat"),
        ("two", "2", "2"),
        ("none", "0", "0"),
        ("dont", "don't", "don't"),
        ("couldn'tve", "couldn't've", "couldn't've"),
        ("left-hand", "left hand", "left hand"),
        ("left -hand", "left hand", "left hand"),
        ("a-b, c", "b c", "b c"),
        ("1,000", "1000", "1000"),
        ("1,000-2", "10002", "1000 2"),  # the comma in a number joins at all marks
        ("3.5", "3.5", "3.5"),
        ("no.", "no", "no"),
        ("cat's", "cat's", "cat 's"),
        ("what?", "what", "what"),
        ("x?y", "x y", "xy"),
        ("x\ny", "x y", "x y"),
    ],
)
def test_answers_are_normalized(answer: str, normalized: str, evalai: str) -> None:
    assert submitted(answer, "normalized") == normalized
    assert submitted(answer, "evalai") == evalai


@pytest.mark.parametrize(
    ("form", "expected"), [("official", 0.0), ("normalized", 1.0), ("evalai", 1.0)]
)
def test_where_all_agree_the_official_code_compares_as_it_is(form: Form, expected: float) -> None:
    assert human_accuracy("The dog", ["dog"] * 10, form) == expected
    assert human_accuracy("The dog", ["dog"] * 9 + ["cat"], form) == 1.0


def test_no_humans_are_an_error() -> None:
    with pytest.raises(ValueError, match="nobody"):
        human_accuracy("x", [], "official")


@pytest.mark.parametrize(
    ("answer", "reading", "expected"),
    [
        ("No, there is none", "first_sentence", "no"),
        ("There is not", "first_sentence", "no"),
        ("Yes. No", "first_sentence", "yes"),
        ("none", "first_sentence", "yes"),  # as LLaVA's code takes it
        (" Yes ", "exact", "yes"),
        ("No.", "exact", "no."),
    ],
)
def test_pope_is_read_in_two_ways(answer: str, reading: Reading, expected: str) -> None:
    assert read_pope(answer, reading) == expected


def test_pope_counts_yes_as_positive() -> None:
    answers = ["yes", "yes", "yes", "no", "no", "maybe"]
    expected = ["yes", "yes", "no", "yes", "no", "yes"]
    score = pope_score(answers, expected)
    assert score.accuracy == pytest.approx(3 / 6)
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(2 / 3)  # "maybe" is not counted as missed
    assert score.f1 == pytest.approx(2 / 3)
    assert score.yes_share == pytest.approx(3 / 6)


def test_pope_of_no_alone_divides_by_nothing() -> None:
    score = pope_score(["no"], ["no"])
    assert (score.accuracy, score.precision, score.recall, score.f1) == (1.0, 0.0, 0.0, 0.0)


def test_f1_varies_over_images_as_much_as_drawing_them_again_shows() -> None:
    rng = random.Random(0)
    images = {
        str(number): [(rng.choice(["yes", "no"]), is_hard) for _ in range(6)]
        for number in range(300)
        for is_hard in (rng.random() < 0.3,)
    }
    rows = [
        (right if rng.random() < (0.5 if is_hard else 0.95) else "other", right, image)
        for image, each in images.items()
        for right, is_hard in each
    ]
    moved = f1_influences(*map(list, zip(*rows, strict=True)))
    assert math.fsum(moved.values()) == pytest.approx(0, abs=1e-12)
    by_image = {image: [row for row in rows if row[2] == image] for image in images}
    drawn = []
    for _ in range(400):
        again = [row for image in rng.choices([*images], k=300) for row in by_image[image]]
        drawn.append(pope_score([a for a, _, _ in again], [b for _, b, _ in again]).f1)
    assert math.sqrt(math.fsum(one**2 for one in moved.values())) == pytest.approx(
        pstdev(drawn), rel=0.15
    )


@pytest.mark.parametrize("rows", [([], []), (["yes"], ["maybe"])])
def test_pope_without_a_right_answer_is_an_error(rows: tuple[list[str], list[str]]) -> None:
    with pytest.raises(ValueError, match="POPE needs"):
        pope_score(*rows)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("n", "no"),
        ("y", "yes"),
        ("q", "other"),
        ("", "other"),
        ("not", "no"),
        ("I say yes", "other"),
        ("eyes", "yes"),
        ("No, yes", "no"),
    ],
)
def test_mme_reads_four_letters(answer: str, expected: str) -> None:
    assert read_mme(answer) == expected


def test_mme_counts_answers_and_whole_images() -> None:
    rows = [("OCR", "1", True), ("OCR", "1", True), ("OCR", "2", True), ("OCR", "2", False)]
    assert mme_score(rows) == {"OCR": pytest.approx(75 + 50)}
    with pytest.raises(ValueError, match="3 of OCR has 1 questions"):
        mme_score([*rows, ("OCR", "3", True)])


@pytest.mark.parametrize(
    ("answer", "science", "seed"),
    [
        ("B", "B", "B"),
        ("b", "B", "B"),
        ("C. cat", "C", "C"),
        ("c. cat", None, "C"),
        ("", None, ""),
        ("The B", None, "T"),
        ("AB", None, "A"),
    ],
)
def test_letters_are_read(answer: str, science: str | None, seed: str) -> None:
    assert read_science_qa(answer) == science
    assert read_seed(answer) == seed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("it is (C).", "C"),
        ("A or B", None),
        ("A horse runs fast", None),  # an article
        ("A dog runs fast", "B"),
        ("A: yes", "A"),
        ("this is a cat", "A"),
        ("cat and dog", None),
        ("E", "E"),
    ],
)
def test_mmbench_takes_a_letter_or_a_text(answer: str, expected: str | None) -> None:
    choices = {"A": "Cat", "B": "dog", "C": "bird"}
    assert read_mmbench(answer, choices) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "is_so"),
    [("Yes!", "yes", True), ("T-shirt", "tshirt", True), ("a cat", "cat", False)],
)
def test_gqa_ignores_case_and_punctuation(answer: str, expected: str, is_so: bool) -> None:
    assert is_equal(answer, expected) is is_so


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("hello", ["hello"], 1.0),
        ("Hello ", ["hello"], 1.0),
        ("hallo", ["xxxxx", "hello"], 0.8),
        ("ab", ["ax"], 0.5),  # just close enough
        ("abc", ["axx"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls_of_the_closest(answer: str, expected: Sequence[str], score: float) -> None:
    assert anls(answer, expected) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        (["The Dog"], [["dog"]], (1.0, 1.0)),
        (["10"], [["10.0"]], (1.0, 1.0)),
        (["3 yards"], [["4 yards"]], (0.0, 0.0)),  # numbers must match
        (["big dog"], [["dog"]], (0.0, 0.67)),
        (["dog"], [["dog", "cat"]], (0.0, 0.5)),
        (["cat", "dog"], [["dog", "cat"]], (1.0, 1.0)),
        (["x"], [["y"], ["x"]], (1.0, 1.0)),
        (["x"], [[" "]], (0.0, 0.0)),
        (["a b", "b c"], [["b c d", "b"]], (0.0, 0.9)),  # b c with b c d, and b with a b
    ],
)
def test_drop_aligns_spans(
    answer: Sequence[str], expected: Sequence[Sequence[str]], score: tuple[float, float]
) -> None:
    assert drop_score(answer, expected) == pytest.approx(score)


def test_too_many_spans_are_an_error() -> None:
    spans = [str(number) for number in range(17)]
    with pytest.raises(ValueError, match="17 spans against 17"):
        drop_score(spans, [spans])
    assert drop_score(["0"], [spans])[1] == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("Two-story bus (left) at 7:30 a.m.", "two-story bus -lrb- left -rrb- at 7:30 a.m."),
        ("I cannot \u201csee\u201d 1,000 & more", "i can not see 1,000 & more"),
        ("...", ""),
    ],
)
def test_captions_are_taken_apart(caption: str, words: str) -> None:
    assert " ".join(caption_words(caption)) == words


def test_cider_of_the_only_right_words() -> None:
    """Two images whose references share no n-gram: each is worth log 2, and a copy scores 10."""
    references = [[["a", "b", "c", "d", "e"]], [["v", "w", "x", "y", "z"]]]
    assert cider([["a", "b", "c", "d", "e"], []], references) == pytest.approx([10.0, 0.0])
    # Three of five words: cosines sqrt(3/5), 2/sqrt(2 x 4), 1/sqrt(1 x 3) and 0, lengths 2 apart.
    shorter = cider([["a", "b", "c"], []], references)[0]
    cosines = math.sqrt(3 / 5) + math.sqrt(2 / 4) + math.sqrt(1 / 3)
    assert shorter == pytest.approx(10 * cosines / 4 * math.exp(-4 / 72))


def test_cider_clips_repeated_words() -> None:
    references = [[["a", "b"]], [["x", "y"]]]
    # "a a a" counts 3 a's, of which 1 is met: 1 / (3 x sqrt(2)); no bigram in common, 1 more of it.
    expected = 10 * (1 / (3 * math.sqrt(2))) / 4 * math.exp(-1 / 72)
    assert cider([["a", "a", "a"], []], references)[0] == pytest.approx(expected)


def test_captions_without_references_are_an_error() -> None:
    without: list[list[list[list[str]]]] = [[], [[]]]
    for references in without:
        with pytest.raises(ValueError, match="needs references"):
            cider([["a"]], references)

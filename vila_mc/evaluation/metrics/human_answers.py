"""Accuracy against what ten people answered, as VQAv2, OKVQA, TextVQA and VizWiz count it.

Sources: PythonEvaluationTools of github.com/GT-Vision-Lab/VQA (``official``), and what EvalAI and
lmms-eval 0.7 make of it (``normalized`` for VQAv2, ``evalai`` for the other three).
"""

import re
from collections.abc import Sequence
from typing import Literal

Form = Literal["official", "normalized", "evalai"]
"""``official`` compares texts as they are where all people gave the same one; ``normalized`` never
does; ``evalai`` drops commas, question marks and the join of a possessive first."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The official code hands a flag of ``re`` (32) to where the most replacements are expected."""
_DIGITS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})
_WITH_APOSTROPHES = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _WITH_APOSTROPHES.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # that way round in the official table
"""One apostrophe forgotten -> as it is written."""


def human_accuracy(answer: str, human_answers: Sequence[str], form: Form) -> float:
    """Mean over the people of min(1, others who gave this answer / 3), from 0 to 1.

    Raises:
        ValueError: there is no answer to compare with.
    """
    if not human_answers:
        raise ValueError("nobody's answer is known")
    given, known = answer, list(human_answers)
    if form == "evalai":
        given, known = (_without_joins(given), [_without_joins(text) for text in known])
    given, *known = (_in_one_line(text) for text in (given, *known))
    if form != "official" or len(set(known)) > 1:
        given, *known = (_normalized(text) for text in (given, *known))
    same = sum(text == given for text in known)
    shares = (min(1.0, (same - (text == given)) / 3) for text in known)
    return sum(shares) / len(known)


def submitted(answer: str, form: Form) -> str:
    """An answer as lmms-eval submits it to the servers of these tasks."""
    return _normalized(_in_one_line(_without_joins(answer) if form == "evalai" else answer))


def _without_joins(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _in_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalized(text: str) -> str:
    """Without punctuation and articles, numbers as digits, apostrophes where they belong."""
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    has_big_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        stands_apart = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if stands_apart or has_big_number else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)

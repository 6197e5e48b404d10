"""Answers that are one of several given ones: ScienceQA, SEED-Bench and MMBench."""

import re
from collections.abc import Mapping
from typing import Literal

Reading = Literal["lmms-eval", "llava"]
"""How ScienceQA's answers are read: lmms-eval takes a small letter, too, and "B." before anything;
LLaVA wants a space after the period, and finds "The answer is B."."""

_AROUND = (
    ("", ""),
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
)
"""What MMBench's code allows before and behind a letter, in its order."""
_LETTERS = ("A", "B", "C", "D", "E")
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_LONG = 3
"""Words above which "A" may be an article."""


def read_science_qa(answer: str, reading: Reading = "lmms-eval") -> str | None:
    """The letter, alone or as "B. ..."; None where there is none."""
    said = answer.strip()
    if reading == "llava":
        if said in _LETTERS or (said[:1] in _LETTERS and said[1:3] == ". "):
            return said[0]
        named = _ANSWER_IS.findall(said)
        return named[0] if len(named) == 1 else None
    if len(said) == 1:
        return said.upper()
    if len(said) >= 2 and said[0].isupper() and said[1] == ".":
        return said[0]
    return None


def read_seed(answer: str) -> str:
    """The first character, as a capital."""
    return answer.strip()[:1].upper()


def read_mmbench(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that an answer names, or the one choice whose text it holds.

    Args:
        choices: letter -> text.

    Returns:
        None where it is neither; MMBench's own code then asks another model.
    """
    words = answer.split()
    for before, after in _AROUND:
        named = [letter for letter in _LETTERS if f"{before}{letter}{after}" in words]
        if len(named) == 1:
            is_article = not before + after and "A" in words and len(words) > _LONG
            if not is_article:
                return named[0]
    said = answer.lower()
    held = [letter for letter, text in choices.items() if text.lower() in said]
    return held[0] if len(held) == 1 else None

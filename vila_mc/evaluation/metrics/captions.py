"""CIDEr-D of captions, as pycocoevalcap 1.2 computes it.

Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (arXiv 1411.5726),
section 4, with clipping and the length penalty of CIDEr-D.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST = 4
"""Words of an n-gram."""
_SIGMA = 6.0
"""Of the penalty for another length."""

_Ngram = tuple[str, ...]

_TOKEN = re.compile(
    r"""(?:[^\W\d_]\.)+                   # a.m., or one letter
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc)\.  # keep their period
    | \d+(?:[.,:/]\d+)*[^\W\d_]*        # 1,000  7:30  5th
    | [^\W_]+(?:[-'.&/_][^\W_]+)*
    | [()\[\]{}&/\#%$@*+=<>^_~|]+?""",
    re.VERBOSE,
)
_ENDING = re.compile(r"(?<=\w)(n't|'s|'re|'ve|'ll|'d|'m)$")
_APART = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def caption_words(caption: str) -> tuple[str, ...]:
    """Lower-case words without punctuation, endings such as n't and 's apart.

    What the Java tokenizer of pycocoevalcap makes of captions; it differs in rare writings
    (docs/evaluation.md says in how many).
    """
    words: list[str] = []
    for token in _TOKEN.findall(caption.lower().replace("\u2019", "'")):
        whole = _BRACKETS.get(token) or _APART.get(token) or _ENDING.sub(r" \1", token)
        words += whole.split()
    return tuple(words)


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A caption as vectors of weighed n-grams, one for each n."""

    weights: tuple[dict[_Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """CIDEr-D of each caption; the task's score is their mean, which is often shown times 100.

    How rare an n-gram is follows from the references of all images, so the score of one depends on
    the others.

    Args:
        captions: words of one caption per image.
        references: words of each reference of each image.

    Raises:
        ValueError: the numbers of images differ, or an image has no reference.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError("each caption needs references")
    counted = [[_ngrams(words) for words in group] for group in references]
    images = Counter(ngram for group in counted for ngram in set().union(*group))
    log_images = math.log(len(references))
    rarity = {ngram: log_images - math.log(seen) for ngram, seen in images.items()}

    def weigh(ngrams: Counter[_Ngram]) -> _Weighed:
        weights: tuple[dict[_Ngram, float], ...] = tuple({} for _ in range(_LONGEST))
        for ngram, count in ngrams.items():
            weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, log_images)
        norms = tuple(math.sqrt(sum(w * w for w in part.values())) for part in weights)
        return _Weighed(weights, norms, sum(c for n, c in ngrams.items() if len(n) == 2))

    return [
        10 * sum(_similarity(weigh(_ngrams(words)), weigh(other)) for other in group) / len(group)
        for words, group in zip(captions, counted, strict=True)
    ]


def _ngrams(words: Sequence[str]) -> Counter[_Ngram]:
    return Counter(
        tuple(words[at : at + n])
        for n in range(1, _LONGEST + 1)
        for at in range(len(words) - n + 1)
    )


def _similarity(caption: _Weighed, reference: _Weighed) -> float:
    """Mean over n of the clipped cosine, less where the lengths differ."""
    total = 0.0
    for n in range(_LONGEST):
        ours, theirs = caption.weights[n], reference.weights[n]
        shared = sum(
            min(weight, other) * other
            for ngram, weight in ours.items()
            if (other := theirs.get(ngram, 0.0))
        )
        norms = caption.norms[n] * reference.norms[n]
        total += shared / norms if norms else shared
    difference = caption.bigrams - reference.bigrams
    return total / _LONGEST * math.exp(-(difference**2) / (2 * _SIGMA**2))

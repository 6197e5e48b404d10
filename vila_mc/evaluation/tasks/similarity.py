"""Which texts are like another: BM25 over their words, the same on every machine."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

_SATURATION, _LENGTH_SHARE = 1.2, 0.75
"""``k1`` and ``b`` of BM25."""
_WORD = re.compile(r"\w+")
_AT_ONCE = 64


class SimilarTexts:
    """Texts to compare others with.

    Source:
        Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; the
        inverse document frequency never falls below 0, as in Lucene.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        counts = [Counter(_words(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], np.float64)
        norms = _SATURATION * (
            1 - _LENGTH_SHARE + _LENGTH_SHARE * lengths / max(1.0, float(lengths.mean()))
        )
        places: dict[str, tuple[list[int], list[int]]] = {}
        for place, count in enumerate(counts):
            for word, number in count.items():
                where, how_often = places.setdefault(word, ([], []))
                where.append(place)
                how_often.append(number)
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, (where, how_often) in places.items():
            rows, times = np.array(where), np.array(how_often, np.float64)
            rarity = np.log(1 + (self._size - len(rows) + 0.5) / (len(rows) + 0.5))
            weights = rarity * times * (_SATURATION + 1) / (times + norms[rows])
            self._weights[word] = rows, weights

    def nearest(self, text: str) -> Iterator[int]:
        """Places of all texts, the most similar first; of equals the first."""
        scores = np.zeros(self._size)
        for word in sorted(set(_words(text))):
            if word in self._weights:
                rows, weights = self._weights[word]
                scores[rows] += weights
        given: set[int] = set()
        number = min(_AT_ONCE, self._size)
        while len(given) < self._size:
            least = np.partition(scores, self._size - number)[self._size - number]
            found = np.flatnonzero(scores >= least)
            for at in found[np.lexsort((found, -scores[found]))]:
                if int(at) not in given:
                    given.add(int(at))
                    yield int(at)
            number = min(2 * number, self._size)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

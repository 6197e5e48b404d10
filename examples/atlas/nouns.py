"""Nouns and their glosses, from the Debian package wordnet-base (formats: wndb(5), cntlist(5))."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vila_mc.errors import DataError

FOLDER = "usr/share/wordnet"
CONCRETE = {5: "animal", 6: "artifact", 8: "body", 13: "food", 18: "person", 20: "plant"}
"""Numbers of the lexicographer files whose nouns can be asked about."""


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun in its most frequent sense."""

    word: str
    gloss: str
    """Its definition, without examples."""
    kind: str
    """The word that it is a kind of; "" for none of one word."""
    file: int
    """Number of its lexicographer file."""
    frequency: int
    """How often the sense was found in the texts that WordNet's authors read."""


@dataclass(frozen=True, slots=True)
class _Synset:
    words: tuple[str, ...]
    file: int
    hypernyms: tuple[str, ...]
    gloss: str


def read_nouns(package: Path) -> list[Noun]:
    """Nouns of one word in small letters, the most frequent first.

    Args:
        package: the unpacked package.

    Raises:
        DataError: a file of WordNet is missing or in another format.
    """
    folder = package / FOLDER
    try:
        synsets = _read_synsets(folder / "data.noun")
        first_senses = _read_first_senses(folder / "index.noun")
        frequencies = _read_frequencies(folder / "cntlist.rev")
        nouns = [
            _noun(word, synsets, offset, frequencies[word])
            for word, offset in first_senses.items()
            if word.isascii() and word.isalpha() and word.islower() and len(word) > 2
        ]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{folder} does not hold WordNet 3.0: {error!r}.") from None
    return sorted(nouns, key=lambda noun: (-noun.frequency, noun.word))


def _noun(word: str, synsets: dict[str, _Synset], offset: str, frequency: int) -> Noun:
    synset = synsets[offset]
    kind = synsets[synset.hypernyms[0]].words[0] if synset.hypernyms else ""
    is_word = kind.isascii() and kind.isalpha() and kind.islower() and kind != word
    return Noun(word, synset.gloss, kind if is_word else "", synset.file, frequency)


def _read_synsets(path: Path) -> dict[str, _Synset]:
    synsets = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        offset, file, _, count, *rest = data.split()
        num_words = int(count, 16)
        words = tuple(rest[0 : 2 * num_words : 2])
        pointers = rest[2 * num_words + 1 :]
        hypernyms = tuple(
            pointers[at + 1] for at in range(0, len(pointers), 4) if pointers[at] == "@"
        )
        definition = gloss.partition('; "')[0].strip()
        synsets[offset] = _Synset(words, int(file), hypernyms, definition)
    return synsets


def _read_first_senses(path: Path) -> dict[str, str]:
    """Offset of each word's most frequent synset."""
    senses = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):
            word, _, num_synsets, *rest = line.split()
            senses[word] = rest[len(rest) - int(num_synsets)]
    return senses


def _read_frequencies(path: Path) -> defaultdict[str, int]:
    """How often each noun's first sense was counted; 0 where it was not."""
    frequencies: defaultdict[str, int] = defaultdict(int)
    for line in path.read_text(encoding="utf-8").splitlines():
        key, number, count = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:") and number == "1":
            frequencies[word] = int(count)
    return frequencies

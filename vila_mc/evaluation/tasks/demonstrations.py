"""Which questions with their answers stand in front of a question."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from vila_mc.data.sources.image_files import read_image
from vila_mc.data.sources.records import RejectionError
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.tasks.similarity import SimilarTexts
from vila_mc.evaluation.tasks.task import Form, Item
from vila_mc.flow import RawImage

Drawn = Literal["random", "fixed", "similar"]
"""A set by chance for each question; one set by chance for all; those whose words are most
similar, the most similar last."""

_BLIND_SHOTS = 2
"""Demonstrations without their images that open_flamingo shows where none are asked for."""


@dataclass(frozen=True, slots=True)
class Shots:
    """How a task is demonstrated."""

    count: int = 0
    """Demonstrations in front of each question."""
    drawn: Drawn = "random"
    seed: int = 0
    """What is drawn by chance follows from it and, but for ``fixed``, from the question's id."""
    form: Form = "chat"

    @property
    def is_blind(self) -> bool:
        """Whether demonstrations stand there without their images."""
        return self.form == "flamingo" and self.count == 0

    @property
    def needed(self) -> int:
        """Demonstrations, blind ones among them."""
        return _BLIND_SHOTS if self.is_blind else self.count


class Demonstrations:
    """Demonstrations from items of a training split, for any item of another.

    None shows a picture of the question itself, under whatever name, nor asks it where there is no
    picture.

    Args:
        pool: items to choose from.
        shots: how many, and how.

    Raises:
        ConfigError: words are to be compared, and all items have the same.
        DataError: there are fewer than are to be shown.
    """

    def __init__(self, pool: Sequence[Item], shots: Shots) -> None:
        self.shots = shots
        groups: dict[str, list[Item]] = {}
        for item in pool if shots.needed else ():
            groups.setdefault(item.group, []).append(item)
        self._pools = {name: _Pool(items, shots) for name, items in groups.items()}

    def of(self, item: Item) -> list[Item]:
        """Those of an item, in the order in which they stand. Raises DataError: too few."""
        wanted = self.shots.needed
        if not wanted:
            return []
        pool = self._pools.get(item.group)
        found: list[Item] = []
        for one in pool.candidates(item) if pool else ():
            if not shows_the_same(one, item):
                found.append(one)
            if len(found) == wanted:
                return found[::-1] if self.shots.drawn == "similar" else found
        of_group = f" of the group {item.group}" if item.group else ""
        raise DataError(
            f"question {item.id} is to stand behind {wanted} demonstrations, and the training "
            f"split has {len(found)}{of_group} that do not show the same. Ask with fewer shots."
        )


class _Pool:
    """Items of one group."""

    def __init__(self, items: Sequence[Item], shots: Shots) -> None:
        self._items = items
        self._shots = shots
        if shots.drawn == "similar" and len({item.words for item in items}) < 2 < len(items):
            raise ConfigError(
                "demonstrations are to be similar, but all of them ask the same and differ in "
                "their pictures alone, which are not compared. Draw them at random.",
                option="demonstrations",
            )

    def candidates(self, item: Item) -> Iterator[Item]:
        """All items, those first that should be shown."""
        if self._shots.drawn == "similar":
            yield from (self._items[at] for at in self._texts.nearest(item.words))
            return
        whom = "" if self._shots.drawn == "fixed" else item.id
        key = f"{self._shots.seed}\n{whom}".encode()
        chance = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "little"))
        seen: set[int] = set()
        while len(seen) < len(self._items):
            at = chance.randrange(len(self._items))
            if at not in seen:
                seen.add(at)
                yield self._items[at]

    @cached_property
    def _texts(self) -> SimilarTexts:
        return SimilarTexts([item.words for item in self._items])


NONE = Demonstrations([], Shots())
"""No demonstrations."""


def shows_the_same(one: Item, other: Item) -> bool:
    """Whether two items share a picture or, where neither has any, the question.

    Raises:
        DataError: a picture cannot be read.
    """
    if one.images and other.images:
        return any(_is_same(first, second) for first in one.images for second in other.images)
    return not one.images and not other.images and one.words == other.words


def _is_same(one: RawImage, other: RawImage) -> bool:
    """By what is in the files, as one picture may have two names."""
    if one.source == other.source:
        return True
    if _size(one) != _size(other):
        return False
    return _content(one) == _content(other)


def _size(image: RawImage) -> int:
    if isinstance(image.source, bytes):
        return len(image.source)
    return image.source.stat().st_size


def _content(image: RawImage) -> bytes:
    try:
        return read_image(image)
    except RejectionError as error:
        raise DataError(f"{image.name} cannot be used: {error}.") from None

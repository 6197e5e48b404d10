"""Interleaved documents of images and sentences, in MMC4's JSON Lines.

Each line holds ``text_list`` (sentences) and ``image_info``, a list of objects with ``image_name``,
``matched_text_index`` and ``matched_sim``. Other keys are not read; ``raw_url`` is never fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from vila_mc.data.images import DEFAULT_MAX_PIXELS, check_image
from vila_mc.data.sources.image_files import find_image, read_image
from vila_mc.data.sources.options import ImageOptions
from vila_mc.data.sources.record_files import ImageRecordSource
from vila_mc.data.sources.records import (
    NO_IMAGE_LEFT,
    NO_SIMILAR_IMAGE,
    Record,
    Rejected,
    RejectionError,
    missing_key,
)
from vila_mc.errors import DataError
from vila_mc.flow import RawImage, RawPiece, RawSample, RawText

MOST_IMAGES = 6
"""Images of a document that VILA keeps."""


@dataclass(frozen=True)
class InterleavedSource(ImageRecordSource):
    """One sample per document: each image before its sentence, all text trained, EOS at the end.

    Sentences are joined by one space; where an image stands between two of them, it takes the
    place of the space. A literal ``<image>`` in a sentence is text like any other.

    Source:
        VILA, arXiv 2312.07533, section 4; MMC4, arXiv 2304.06939.
    """

    most_images: int = MOST_IMAGES
    """Images of a document that are kept, in the order of ``image_info``."""
    least_similarity: float | None = None
    """Images that are less like their sentence are left out before ``most_images`` are taken."""
    skips_missing: bool = False
    """Whether images that are missing or cannot be used are left out, too, rather than their
    document rejected."""
    as_pairs: bool = False
    """One sample per image instead, with its sentence as the caption: VILA's MMC4-pairs."""
    most_pixels: int = DEFAULT_MAX_PIXELS
    """Most pixels of an image, where those that cannot be used are left out."""

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample | Rejected]:
        """See ``RecordSource.parse``."""
        sentences = _sentences(record)
        placed = self._choose(record, len(sentences))
        if self.as_pairs:
            for index, image in placed:
                try:
                    yield RawSample(self._pair(sentences[index], image), place)
                except RejectionError as error:
                    yield error.at(file, place)
            return
        before: dict[int, list[RawImage]] = {}
        for index, image in placed:
            before.setdefault(index, []).append(self._found(image))
        yield RawSample(_interleave(sentences, before), place)

    def _pair(self, sentence: str, image: object) -> tuple[RawPiece, ...]:
        found = self._found(image)
        if not sentence:
            raise RejectionError("empty text", f"the sentence of {found.name[:80]} is blank")
        return found, RawText(sentence, is_trained=True, ends_turn=True)

    def _found(self, image: object) -> RawImage:
        return image if isinstance(image, RawImage) else find_image(self.images, image)

    def _choose(self, record: Record, num_sentences: int) -> list[tuple[int, object]]:
        """(index of the sentence that it stands before, name or image) of each image kept."""
        infos = _list(record, "image_info")
        if not infos:
            raise RejectionError("no image", "'image_info' is empty")
        if self.least_similarity is not None:
            infos = [
                info
                for number, info in enumerate(infos)
                if _similarity(record, number, info) >= self.least_similarity
            ]
            if not infos:
                raise RejectionError(
                    NO_SIMILAR_IMAGE,
                    f"no image is as similar as {self.least_similarity}",
                )
        placed = (_place(info, num_sentences) for info in infos)
        if self.skips_missing:
            found = ((index, self._usable(name)) for index, name in placed)
            placed = ((index, image) for index, image in found if image is not None)
        kept = list(islice(placed, self.most_images))
        if not kept:
            raise RejectionError(NO_IMAGE_LEFT, f"none of {len(infos):,} images can be used")
        return kept

    def _usable(self, name: object) -> RawImage | None:
        if name in (None, ""):
            return None
        try:
            image = find_image(self.images, name)
            data = read_image(image)
            sides = check_image(data, image.name, self.most_pixels)
        except DataError:
            return None
        except RejectionError as error:
            if error.reason == "bad image name":
                raise
            return None
        return RawImage(data, image.name, sides=sides)


def _interleave(sentences: list[str], before: dict[int, list[RawImage]]) -> tuple[RawPiece, ...]:
    pieces: list[RawPiece] = []
    run: list[str] = []
    for index, sentence in enumerate(sentences):
        if index in before:
            if run:
                pieces.append(RawText(" ".join(run), is_trained=True))
            pieces += before[index]
            run = []
        if sentence:
            run.append(sentence)
    return (*pieces, RawText(" ".join(run), is_trained=True, ends_turn=True))


def _sentences(record: Record) -> list[str]:
    sentences = _list(record, "text_list")
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise RejectionError("not a text", "'text_list' holds something other than texts")
    sentences = [sentence.strip() for sentence in sentences]
    if not any(sentences):
        raise RejectionError("empty text", "'text_list' holds no text")
    return sentences


def _list(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise missing_key(record, f"list under {key!r}")
    return value


def _similarity(record: Record, number: int, info: object) -> float:
    """``matched_sim`` of an image, or what the similarity matrix says."""
    value: object = None
    if isinstance(info, dict):
        value = info.get("matched_sim")
        if value is None:
            try:
                value = record["similarity_matrix"][number][info["matched_text_index"]]
            except (KeyError, IndexError, TypeError):
                value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RejectionError(
            "bad image_info", "an image has neither 'matched_sim' nor a similarity in the matrix"
        )
    return value


def _place(info: object, num_sentences: int) -> tuple[int, object]:
    if not isinstance(info, dict):
        raise RejectionError("bad image_info", f"an entry is a {type(info).__name__}")
    index = info.get("matched_text_index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_sentences:
        given = str(index)[:40] if "matched_text_index" in info else "missing"
        raise RejectionError(
            "bad image_info",
            f"'matched_text_index' is {given}; it is a place in 'text_list', 0 to "
            f"{num_sentences - 1}",
        )
    return index, info.get("image_name")


@dataclass(frozen=True, kw_only=True)
class InterleavedOptions(ImageOptions):
    """MMC4 JSON Lines: text_list and image_info."""

    max_images: PositiveInt = MOST_IMAGES
    """Images of a document that are kept."""
    min_similarity: float | None = None
    """Leave out images less similar to their sentence (default: keep all)."""
    skip_missing_images: bool = False
    """Leave out images that are missing or do not decode (default: reject their document)."""
    as_pairs: bool = False
    """A sample per image, with its sentence as the caption (VILA's MMC4-pairs)."""

    def source(self) -> InterleavedSource:
        """See ``RawOptions.source``."""
        return InterleavedSource(
            *self.files_and_images(),
            self.max_images,
            self.min_similarity,
            self.skip_missing_images,
            self.as_pairs,
            self.max_pixels,
        )

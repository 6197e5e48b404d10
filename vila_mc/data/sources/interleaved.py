"""Interleaved documents of images and sentences, in MMC4's JSON Lines.

Each line holds ``text_list`` (sentences) and ``image_info``, a list of objects with ``image_name``
and ``matched_text_index``. Other keys, such as the similarity matrix, are not read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vila_mc.data.sources.records import (
    Record,
    Rejected,
    RejectionError,
    image_part,
    read_samples,
)
from vila_mc.flow import ImagePart, RawSample, TextPart

MOST_IMAGES = 6
"""Images of a document that are kept, in the order of ``image_info``."""


def read_interleaved(files: Sequence[Path], images: Path) -> Iterator[RawSample | Rejected]:
    """One sample per document: each image before its sentence, all text trained, EOS at the end.

    Sentences are joined by one space; where an image stands between two of them, it takes the
    place of the space. A literal ``<image>`` in a sentence is text like any other.

    Args:
        files: ``.jsonl``, ``.jsonl.gz`` or ``.json`` (array) files.
        images: folder that the names under ``image_name`` are relative to.

    Raises:
        DataError: a file cannot be read.

    Source:
        VILA, arXiv 2312.07533, section 4; MMC4, arXiv 2304.06939.
    """

    def parse(record: Record, origin: str) -> RawSample:
        sentences = _sentences(record)
        chosen = _list(record, "image_info")[:MOST_IMAGES]
        if not chosen:
            raise RejectionError("no image", "'image_info' is empty")
        placed = [_place(info, len(sentences)) for info in chosen]
        before: dict[int, list[ImagePart]] = {}
        for index, name in placed:
            before.setdefault(index, []).append(image_part(images, name))
        return RawSample(_interleave(sentences, before), origin)

    return read_samples(files, parse)


def _interleave(
    sentences: list[str], before: dict[int, list[ImagePart]]
) -> tuple[TextPart | ImagePart, ...]:
    parts: list[TextPart | ImagePart] = []
    run: list[str] = []
    for index, sentence in enumerate(sentences):
        if index in before:
            if run:
                parts.append(TextPart(" ".join(run), is_trained=True))
            parts += before[index]
            run = []
        if sentence:
            run.append(sentence)
    return (*parts, TextPart(" ".join(run), is_trained=True, ends_turn=True))


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
        raise RejectionError("missing key", f"there is no list under {key!r}")
    return value


def _place(info: object, num_sentences: int) -> tuple[int, object]:
    """(index of the sentence that the image stands before, image name)."""
    if not isinstance(info, dict):
        raise RejectionError("bad image_info", f"an entry is a {type(info).__name__}")
    index = info.get("matched_text_index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_sentences:
        raise RejectionError(
            "bad image_info",
            f"'matched_text_index' is {index!r}, but there are {num_sentences} sentences",
        )
    return index, info.get("image_name")

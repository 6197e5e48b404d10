"""Image-caption pairs: JSON Lines with ``image`` and ``caption`` (or ``text``)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vila_mc.data.sources.records import (
    Record,
    Rejected,
    image_part,
    read_samples,
    require_string,
)
from vila_mc.flow import RawSample, TextPart


def read_pairs(files: Sequence[Path], images: Path) -> Iterator[RawSample | Rejected]:
    """One sample per pair: the image, then the caption and EOS, both trained.

    Args:
        files: ``.jsonl``, ``.jsonl.gz`` or ``.json`` (array) files.
        images: folder that the names under ``image`` are relative to.

    Raises:
        DataError: a file cannot be read.

    Source:
        VILA, arXiv 2312.07533, section 4 (COYO).
    """

    def parse(record: Record, origin: str) -> RawSample:
        image = image_part(images, require_string(record, "image"))
        caption = require_string(record, "caption" if "caption" in record else "text").strip()
        return RawSample((image, TextPart(caption, is_trained=True, ends_turn=True)), origin)

    return read_samples(files, parse)

"""Image-caption pairs: JSON records beside images, WebDataset archives, parquet with images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from vila_mc.config.options import Argument
from vila_mc.data.sources.file_kinds import refuse_no_archive
from vila_mc.data.sources.image_files import find_image
from vila_mc.data.sources.options import ImageOptions
from vila_mc.data.sources.parquet import EmbeddedPair, has_embedded_images, read_embedded
from vila_mc.data.sources.record_files import ImageRecordSource, decode
from vila_mc.data.sources.records import (
    Block,
    Record,
    Rejected,
    RejectionError,
    in_blocks,
    is_given,
    missing_key,
    require_string,
)
from vila_mc.data.sources.tars import read_member
from vila_mc.data.sources.webdataset import IMAGES, ShardSample, read_shard
from vila_mc.errors import DataError
from vila_mc.flow import RawImage, RawSample, RawText

_CAPTION_KEYS = ("caption", "text")
_CAPTION_OPTION = "caption_key"
_ARCHIVES = (".tar", ".parquet")


@dataclass(frozen=True)
class PairSource(ImageRecordSource):
    """One sample per pair: the image, then the caption and EOS, both trained.

    A ``.tar`` is a WebDataset archive: files with one key are a sample, of which the image and the
    ``.txt`` (or the caption in the ``.json``) are read. A ``.parquet`` file gives the captions of
    the ``.tar`` beside it, as img2dataset writes them, or holds the images itself in a column
    ``image``. Any other file holds JSON records; only they look for their image in ``images``.

    Source:
        VILA, arXiv 2312.07533, section 4 (COYO).
    """

    caption_key: str | None = None
    """Where captions stand in records and parquet files; None: ``caption``, else ``text``."""

    readable = "a .tar, a .parquet with images or beside its .tar, or JSON records in .jsonl, "
    readable += ".jsonl.gz, .jsonl.zst, .zip or .json files"

    def prepared(self, folder: Path) -> Self:
        """See ``Source.prepared``."""
        given = set(self.files)
        for file in given:
            if file.suffix == ".parquet" and (tar := file.with_suffix(".tar")) in given:
                raise DataError(f"{file} stands for {tar}, which is given too. Give one of them.")
        return super().prepared(folder)

    def check(self, file: Path) -> None:
        """See ``RecordSource.check``."""
        if file.suffix not in _ARCHIVES:
            super().check(file)
        elif not _is_whole(file):
            refuse_no_archive(file.with_suffix(".tar"))

    def blocks(self, file: Path) -> Iterator[Block]:
        """See ``Source.blocks``."""
        if file.suffix not in _ARCHIVES:
            return super().blocks(file)
        keys = (self.caption_key,) if self.caption_key else _CAPTION_KEYS
        entries = read_embedded(file, keys) if _is_whole(file) else read_shard(file, keys)
        return in_blocks(file, entries, self.block_records, 64 << 20)

    def samples(self, block: Block) -> Iterator[RawSample | Rejected]:
        """See ``Source.samples``."""
        if block.file.suffix not in _ARCHIVES:
            yield from super().samples(block)
            return
        archive = block.file.with_suffix(".tar")
        for key, found in block.entries:
            try:
                if isinstance(found, RejectionError):
                    raise found
                if isinstance(found, EmbeddedPair):
                    caption = require_string({"caption": found.caption}, "caption")
                    yield self._pair(RawImage(found.image, f"row {key}"), caption, key)
                else:
                    yield self._pair(*self._read(archive, found), key)
            except RejectionError as error:
                yield error.at(block.file, key)

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample]:
        """See ``RecordSource.parse``."""
        if not is_given(record, "image"):
            raise missing_key(record, "'image'")
        caption = self._caption(record)
        yield self._pair(find_image(self.images, record["image"]), caption, place)

    def _pair(self, image: RawImage, caption: str, place: int | str) -> RawSample:
        text = RawText(caption.strip(), is_trained=True, ends_turn=True)
        return RawSample((image, text), place)

    def _caption(self, record: Record) -> str:
        if self.caption_key is not None:
            return require_string(record, self.caption_key, _CAPTION_OPTION)
        for key in _CAPTION_KEYS:
            if is_given(record, key):
                return require_string(record, key)
        raise missing_key(record, " or ".join(map(repr, _CAPTION_KEYS)), _CAPTION_OPTION)

    def _read(self, archive: Path, sample: ShardSample) -> tuple[RawImage, str]:
        images = [sample.members[kind] for kind in IMAGES if kind in sample.members]
        if len(images) != 1:
            raise RejectionError(
                "missing image" if not images else "several images",
                f"{sample.key} has {', '.join(sorted(sample.members)) or 'nothing'}",
            )
        caption = self._shard_caption(archive, sample)
        return RawImage(read_member(archive, images[0]), images[0].name), caption

    def _shard_caption(self, archive: Path, sample: ShardSample) -> str:
        if sample.caption is not None:
            return require_string({"caption": sample.caption}, "caption")
        if "txt" in sample.members and self.caption_key is None:
            data = read_member(archive, sample.members["txt"])
            try:
                return require_string({"txt": data.decode("utf-8")}, "txt")
            except UnicodeDecodeError as error:
                raise RejectionError("not UTF-8", error.reason) from None
        if "json" in sample.members:
            return self._caption(decode(read_member(archive, sample.members["json"])))
        raise RejectionError("missing caption", f"{sample.key} has neither .txt nor .json")


def _is_whole(file: Path) -> bool:
    """Whether a file needs no archive beside it. Raises DataError, SetupError."""
    return file.suffix == ".parquet" and has_embedded_images(file)


@dataclass(frozen=True, kw_only=True)
class PairsOptions(ImageOptions):
    """WebDataset .tar, img2dataset .parquet beside .tar, .parquet with images, or JSON Lines with
    image, caption."""

    caption_key: Annotated[str | None, Argument("KEY")] = None
    """Key, or column, of the caption (default: caption, else text)."""

    def source(self) -> PairSource:
        """See ``RawOptions.source``."""
        return PairSource(*self.files_and_images(), self.caption_key)

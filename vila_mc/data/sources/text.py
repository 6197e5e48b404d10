"""Text-only corpora: JSON Lines with one document a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vila_mc.config.options import Argument
from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.data.sources.options import RawOptions
from vila_mc.data.sources.record_files import RecordSource
from vila_mc.data.sources.records import Record, require_string
from vila_mc.flow import RawSample, RawText


@dataclass(frozen=True)
class TextSource(RecordSource):
    """One sample per document: all of it trained, EOS at its end."""

    key: str = "text"
    """Where each object holds the document."""

    block_records = 10_000

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample]:
        """See ``RecordSource.parse``."""
        text = require_string(record, self.key, "text_key")
        yield RawSample((RawText(text, is_trained=True, ends_turn=True),), place)


@dataclass(frozen=True, kw_only=True)
class TextOptions(RawOptions):
    """JSON Lines with one document a line."""

    text_key: Annotated[str, Argument("KEY")] = "text"
    """Key of the document."""

    def source(self) -> TextSource:
        """See ``RawOptions.source``."""
        return TextSource(expand_inputs(self.input), self.text_key)

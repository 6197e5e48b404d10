"""Raw corpora to an indexed dataset: the same bytes for any number of workers.

The sources are read in this process, samples are tokenised and their images checked in workers, and
the results are written here in the order of the records. A record that cannot be used goes to
PREFIX.rejected.jsonl; too many of them and there is no dataset.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vila_mc.data.encode import encode_sample
from vila_mc.data.images import DEFAULT_MAX_PIXELS, check_max_pixels
from vila_mc.data.indexed_writer import IndexedWriter, refuse_existing
from vila_mc.data.manifest import Manifest, SetKind
from vila_mc.data.ordered_map import ordered_map
from vila_mc.data.sources.records import Rejected, RejectionError
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import EncodedSample, RawSample

_EARLY = 1000
"""Records after which a run stops if more than half are rejected."""


@dataclass(frozen=True, slots=True)
class RejectionLimit:
    """How many records may be rejected: a number of them, or a share of all."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "RejectionLimit":
        """Read ``25`` or ``1%``. Raises ConfigError."""
        try:
            if text.endswith("%"):
                limit = cls(share=float(text[:-1]) / 100)
                is_valid = 0 <= limit.share <= 1  # type: ignore[operator]
            else:
                limit = cls(count=int(text))
                is_valid = limit.count >= 0  # type: ignore[operator]
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ConfigError(
                f"--max-rejected is {text!r}; give a number of records such as 25, or a share of "
                "them such as 1%."
            )
        return limit

    def is_passed(self, rejected: int, seen: int, *, is_end: bool) -> bool:
        """Whether ``rejected`` of ``seen`` records are too many."""
        if self.count is not None:
            return rejected > self.count
        assert self.share is not None
        if is_end:
            return rejected > self.share * seen
        return seen >= _EARLY and rejected > max(0.5, self.share) * seen

    def __str__(self) -> str:
        return f"{self.count}" if self.share is None else f"{100 * self.share:.6g}%"


@dataclass(slots=True)
class Tally:
    """What became of the records."""

    seen: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first: Rejected | None = None

    def reject(self, rejected: Rejected) -> None:
        """Count a rejected record."""
        self.rejected[rejected.reason] += 1
        self.first = self.first or rejected


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """What a run made."""

    manifest: Manifest
    rejected: dict[str, int]
    """Rejected records by reason."""

    def lines(self) -> list[str]:
        """The closing lines of the tool."""
        total = sum(self.rejected.values())
        made = self.manifest
        lines = [f"kept      {made.samples:,} samples", f"rejected  {total:,} records"]
        lines += [f"          {count:,} x {reason}" for reason, count in self.rejected.items()]
        return [
            *lines,
            f"tokens    {made.tokens:,}",
            f"images    {made.images:,}",
            f"bytes     {made.bin_bytes:,}",
        ]


def preprocess(
    samples: Iterable[RawSample | Rejected],
    output: Path,
    kind: SetKind,
    tokenizer: Path,
    *,
    source: dict[str, Any],
    workers: int = 1,
    limit: RejectionLimit = RejectionLimit(share=0.01),
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Preprocessed:
    """Encode a stream of samples and store them as one dataset.

    Args:
        samples: what a reader of ``vila_mc.data.sources`` yields.
        output: prefix of the dataset.
        kind: text for text-only sets, multimodal for all others.
        tokenizer: SentencePiece ``.model`` file.
        source: what the samples come from, for the manifest.
        workers: processes that encode.
        limit: rejected records beyond which there is no dataset.
        max_pixels: largest image.

    Raises:
        DataError: too many records are rejected, none is left, the set exists already, or files
            cannot be read or written.
        ConfigError: ``workers`` or ``max_pixels`` is out of range.
    """
    check_max_pixels(max_pixels)
    if workers < 1:
        raise ConfigError(f"--workers is {workers}; it must be at least 1.")
    refuse_existing(output)
    tally = Tally()
    with IndexedWriter(output, kind, Tokenizer(tokenizer)) as writer:
        arguments = (tokenizer, max_pixels)
        with closing(ordered_map(_encode, samples, workers, _initialise, arguments)) as results:
            for encoded in _keep(results, tally, limit, writer):
                writer.add(encoded)
        if tally.seen == tally.rejected.total():
            raise DataError(f"no sample is left for {output}. {_first(tally)}")
        manifest = writer.finish(source)
    return Preprocessed(manifest, dict(tally.rejected.most_common()))


def expand_inputs(patterns: Iterable[str]) -> list[Path]:
    """Files that paths and glob patterns name, sorted within each pattern.

    Raises:
        DataError: a pattern matches no file.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files.append(path)
            continue
        matches = map(Path, glob(pattern, recursive=True))
        found = sorted(match for match in matches if match.is_file())
        if not found:
            raise DataError(f"no file matches --input {pattern}. Check the path.")
        files += found
    return files


def _keep(
    results: Iterable[EncodedSample | Rejected],
    tally: Tally,
    limit: RejectionLimit,
    writer: IndexedWriter,
) -> Iterator[EncodedSample]:
    """Pass encoded samples on; write the rejected ones down and stop when they are too many."""
    for result in tqdm(results, unit=" records", disable=None):
        tally.seen += 1
        if isinstance(result, EncodedSample):
            yield result
            continue
        tally.reject(result)
        writer.reject(json.dumps(asdict(result)))
        _check(tally, limit, writer, is_end=False)
    _check(tally, limit, writer, is_end=True)


def _check(tally: Tally, limit: RejectionLimit, writer: IndexedWriter, *, is_end: bool) -> None:
    rejected = tally.rejected.total()
    if limit.is_passed(rejected, tally.seen, is_end=is_end):
        raise DataError(
            f"{rejected:,} of {tally.seen:,} records are rejected, more than --max-rejected "
            f"{limit} allows. {_first(tally)} All are in {writer.give_rejected()}. Repair them or "
            "raise --max-rejected."
        )


def _first(tally: Tally) -> str:
    if tally.first is None:
        return "The input holds no record."
    return f"The first: {' '.join(tally.first.describe().split()).rstrip('.')}."


_tokenizer: Tokenizer
_max_pixels: int


def _initialise(tokenizer: Path, max_pixels: int) -> None:
    # What each worker process keeps between samples.
    global _tokenizer, _max_pixels
    _tokenizer, _max_pixels = Tokenizer(tokenizer), max_pixels


def _encode(sample: RawSample | Rejected) -> EncodedSample | Rejected:
    if isinstance(sample, Rejected):
        return sample
    try:
        return encode_sample(sample, _tokenizer, _max_pixels)
    except RejectionError as error:
        file, _, line = sample.origin.rpartition(":")
        return Rejected(file, int(line), error.reason, error.detail)

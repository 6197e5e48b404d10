"""Raw corpora to an indexed dataset: the same bytes for any number of workers, and after any kill.

This process cuts the files into blocks of records. Workers turn a block into samples, tokenise the
texts, check the images and serialise them. This process appends the blocks in their order. A
record that cannot be used goes to PREFIX.rejected.jsonl; too many of them and there is no dataset.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vila_mc.data.indexed.dataset_manifest import PARTIAL_SUFFIX, DatasetManifest, SetKind
from vila_mc.data.indexed.layout import DTYPE_CODES, text_dtype, with_suffix
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.serialisation import Serialised, serialise
from vila_mc.data.indexed.writer import (
    REJECTED_SUFFIX,
    IndexedWriter,
    complete_moves,
    is_finished,
    refuse_existing,
)
from vila_mc.data.ingest.encode import AS_IS, ImagePolicy, encode_samples
from vila_mc.data.ingest.progress import Progress
from vila_mc.data.ingest.provenance import describe_files, differences
from vila_mc.data.ingest.rejection import DEFAULT_LIMIT, RejectionLimit, Tally
from vila_mc.data.ordered_map import check_workers, ordered_map
from vila_mc.data.sources.records import Block, Rejected, RejectionError, Source
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import EncodedSample, RawSample

_TEMPLATE_SHARE = 0.2
"""Share of the tokens that a chat template may take without a word about it."""
_SPELLED = 3.0
"""Characters of a template in one token below which a tokenizer does not know its words; with those
of Llama, and with any that has read it, a token has some 4 to 5."""
_SHORT = 12
"""Tokens of a template in a sample that no advice makes fewer: ``USER:`` and ``ASSISTANT:`` take
some 9."""
_COMMIT_BYTES = 256 << 20
_COMMIT_SECONDS = 60.0
"""What a kill costs at most: this much output, or this much time."""


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """What a run made."""

    manifest: DatasetManifest
    rejected: dict[str, int]
    """Rejected records by reason."""
    unread_bytes: int
    """Bytes of the input that were not read, in files that end early."""
    seconds: float
    """Duration of this run alone, also where it went on from another."""
    noticed: dict[str, int] = field(default_factory=dict)
    """Samples that were kept and may not be what was meant, by what was noticed."""
    was_complete: bool = False
    """Whether an earlier run had made it already."""
    template_tokens: int = 0
    """Tokens that a chat template wrote, special tokens left out."""
    template_characters: int = 0
    """Characters of the same."""

    def warning(self) -> str | None:
        """What the chat template costs, in one line; None where that is little."""
        made, own = self.manifest, self.template_tokens
        if own <= max(_TEMPLATE_SHARE * made.tokens, _SHORT * made.samples):
            return None
        each = self.template_characters / own
        figures = (
            f"the chat template's own text takes {100 * own / made.tokens:.0f} % of the tokens "
            f"({own / made.samples:,.0f} of {made.tokens / made.samples:,.0f} in a sample)"
        )
        if each < _SPELLED:
            return (
                f"{figures}, for the tokenizer spells it {each:.1f} characters at a time. Train a "
                "tokenizer on these records with this template, or use another template."
            )
        return (
            f"{figures}: what is said is short beside it. A shorter template, in a YAML file, "
            "makes rows shorter and training faster."
        )

    def lines(self) -> list[str]:
        """The closing table of the tool."""
        made = self.manifest
        lines = ["complete already: nothing was left to do"] if self.was_complete else []
        lines += [
            f"kept      {made.samples:,} samples",
            f"rejected  {sum(self.rejected.values()):,} records",
        ]
        lines += [f"          {count:,} x {reason}" for reason, count in self.rejected.items()]
        if self.unread_bytes:
            lines.append(f"not read  {self.unread_bytes:,} bytes of the input: the list says which")
        lines += [f"notice    {count:,} x {what}" for what, count in self.noticed.items()]
        return [
            *lines,
            f"tokens    {made.tokens:,}",
            f"images    {made.images:,}",
            f"bytes     {made.bin_bytes:,}",
            f"seconds   {self.seconds:,.1f}",
        ]


def preprocess(
    source: Source,
    output: Path,
    kind: SetKind,
    tokenizer: Path,
    *,
    facts: dict[str, Any],
    workers: int = 1,
    limit: RejectionLimit = DEFAULT_LIMIT,
    images: ImagePolicy = AS_IS,
    resume: bool = False,
) -> Preprocessed:
    """Encode a source and store it as one dataset.

    Args:
        source: one of ``vila_mc.data.sources``.
        output: prefix of the dataset.
        kind: text for text-only sets, multimodal for all others.
        tokenizer: see ``Tokenizer``.
        facts: kind and options of the source, for the manifest, beside its files and ``images``.
            A run goes on only where an earlier one of the same facts and tokenizer stopped.
        workers: processes that encode.
        limit: rejected records beyond which there is no dataset.
        images: which images are taken, and as what.
        resume: go on where an earlier run was stopped; if there is none, start; if it had
            finished, do nothing.

    Raises:
        DataError: too many records are rejected, none is left, the set exists already, an
            unfinished run is in the way, or files cannot be read or written.
        ConfigError: ``workers`` is out of range, or the earlier run had other settings.
    """
    started = time.monotonic()
    check_workers(workers)
    if resume:
        complete_moves(output)
    else:
        refuse_existing(output)
    opened = Tokenizer(tokenizer)
    made_from = _made_from(source, facts, images if kind == "multimodal" else None)
    settings = made_from | {"tokenizer": opened.fingerprint()}
    if is_finished(output):
        return _finished_before(output, settings, started)
    with IndexedWriter(output, kind, opened, resume=resume) as writer:
        if writer.committed is not None:
            _require_same(output, writer.committed["settings"], settings)
        source = source.prepared(writer.folder)
        run = _Run(writer, source, limit, settings)
        work = _Work(source, kind, tokenizer, images)
        with closing(ordered_map(_Encoder, (work,), run.blocks(), workers)) as results:
            run.write(results)
        if run.tally.seen == run.tally.rejected.total():
            raise DataError(f"no sample is left for {output}. {run.tally.example()}")
        manifest = writer.finish(made_from)
    return _summed_up(manifest, run.tally, started)


class _Run:
    """The part of a run that happens in order: cutting blocks before, appending results after."""

    def __init__(
        self,
        writer: IndexedWriter,
        source: Source,
        limit: RejectionLimit,
        settings: dict[str, Any],
    ) -> None:
        self._writer = writer
        self._source = source
        self._limit = limit
        self._settings = settings
        self.tally = Tally()
        self._file = self._block = 0  # the next block: of which file, and which of it
        if writer.committed is not None:
            self.tally = Tally.from_json(writer.committed["tally"])
            self._file, self._block = writer.committed["next"]

    def blocks(self) -> Iterator[tuple[int, int, Block]]:
        """(number of the file, number of the block in it, block), from where the run goes on."""
        skip = self._block
        for number, file in enumerate(self._source.files):
            if number >= self._file:
                blocks = enumerate(self._source.blocks(file))
                for index, block in islice(blocks, skip, None):
                    yield number, index, block
                skip = 0

    def write(self, results: Iterable["_Result"]) -> None:
        """Append results in their order, and commit now and then. Raises DataError."""
        committed_at, committed_bytes = time.monotonic(), self._writer.bytes_written()
        with Progress(self._source.files) as progress:
            for result in results:
                self._take(result)
                self._file, self._block = result.file, result.block + 1
                progress.show(result.file, result.end, self.tally, self._writer.bytes_written())
                now, written = time.monotonic(), self._writer.bytes_written()
                if (
                    written - committed_bytes > _COMMIT_BYTES
                    or now - committed_at > _COMMIT_SECONDS
                ):
                    self._commit()
                    committed_at, committed_bytes = now, written
        self._check(is_end=True)

    def _take(self, result: "_Result") -> None:
        self.tally.seen += len(result.samples.pieces) + len(result.rejected)
        self.tally.noticed.update(result.noticed)
        self.tally.template_tokens += result.template_tokens
        self.tally.template_characters += result.template_characters
        self._writer.append(result.samples)
        for rejected in result.rejected:
            self.tally.reject(rejected)
            self._writer.reject(json.dumps(rejected.to_json()))
        if result.rejected:
            self._check(is_end=False)

    def _commit(self) -> None:
        state = {
            "settings": self._settings,
            "next": (self._file, self._block),
            "tally": self.tally.to_json(),
        }
        self._writer.commit(state)

    def _check(self, *, is_end: bool) -> None:
        faults = self.tally.faults()
        if self._limit.is_exceeded(faults, self.tally.seen, is_end=is_end):
            raise DataError(
                f"{faults:,} of {self.tally.seen:,} records are rejected, more than "
                f"the limit of {self._limit}. {self.tally.example()} All are in "
                f"{self._writer.give_rejected()}. Repair them or raise the limit.",
                option="max_rejected",
            )


def _made_from(source: Source, facts: dict[str, Any], images: ImagePolicy | None) -> dict[str, Any]:
    """With the tokenizer, everything that the bytes of the dataset depend on, as JSON gives it
    back."""
    made_from = facts | {"files": describe_files(source.files)}
    made_from |= {} if images is None else asdict(images)
    return dict(json.loads(json.dumps(made_from)))


def _require_same(output: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    if found := differences(earlier, settings):
        raise ConfigError(
            f"the unfinished run of {output} had other input or options, so it cannot go on with "
            f"these: {'; '.join(found)}. Use the command that started it, or delete "
            f"{with_suffix(output, PARTIAL_SUFFIX)} to start anew."
        )


def _finished_before(output: Path, settings: dict[str, Any], started: float) -> Preprocessed:
    manifest = IndexedReader(output).manifest
    earlier = manifest.source | {"tokenizer": manifest.tokenizer_sha256}
    if found := differences(earlier, settings):
        raise ConfigError(
            f"the dataset {output} is complete, but was made from other input or with other "
            f"options: {'; '.join(found)}. Use the command that made it, choose another output, "
            "or delete its .bin, .idx and .manifest.json to make it anew."
        )
    return _summed_up(manifest, _listed(output), started, was_complete=True)


def _summed_up(
    manifest: DatasetManifest, tally: Tally, started: float, *, was_complete: bool = False
) -> Preprocessed:
    rejected = dict(tally.rejected.most_common())
    seconds = time.monotonic() - started
    noticed = dict(tally.noticed.most_common())
    return Preprocessed(
        manifest,
        rejected,
        tally.unread_bytes,
        seconds,
        noticed,
        was_complete,
        tally.template_tokens,
        tally.template_characters,
    )


def _listed(output: Path) -> Tally:
    """The rejected records that an earlier run listed."""
    file = with_suffix(output, REJECTED_SUFFIX)
    tally = Tally()
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                tally.rejected[line["reason"]] += 1
                tally.unread_bytes += line.get("unread_bytes", 0)
    return tally


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker process keeps between blocks."""

    source: Source
    kind: SetKind
    tokenizer: Path
    images: ImagePolicy


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of a block."""

    file: int
    block: int
    end: int
    samples: Serialised
    rejected: list[Rejected]
    noticed: Counter[str]
    template_tokens: int
    template_characters: int


class _Encoder:
    """What each process keeps: from a block to the bytes of its samples."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._tokenizer = Tokenizer(work.tokenizer)
        is_text = work.kind == "text"
        self._dtype = text_dtype(self._tokenizer.vocab_size) if is_text else DTYPE_CODES[1]

    def __call__(self, numbered: tuple[int, int, Block]) -> _Result:
        file, number, block = numbered
        rejected: list[Rejected] = []
        encoded: list[EncodedSample] = []
        template_characters = 0
        found = list(self._work.source.samples(block))
        samples = [sample for sample in found if isinstance(sample, RawSample)]
        results = encode_samples(samples, self._tokenizer, self._work.images)
        for item in found:
            if isinstance(item, Rejected):
                rejected.append(item)
                continue
            result = next(results)
            if isinstance(result, RejectionError):
                rejected.append(result.at(block.file, item.place))
            else:
                encoded.append(result)
                template_characters += sum(map(len, item.template_words))
        serialised = serialise(encoded, self._work.kind, self._dtype)
        noticed = Counter(what for sample in encoded for what in sample.noticed)
        template_tokens = sum(sample.template_tokens for sample in encoded)
        return _Result(
            file,
            number,
            block.end,
            serialised,
            rejected,
            noticed,
            template_tokens,
            template_characters,
        )

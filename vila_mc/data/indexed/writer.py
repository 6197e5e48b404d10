"""Write an indexed dataset: all of it, or nothing that could be taken for it.

Everything grows in the folder PREFIX.partial. ``finish`` moves .bin, .idx and at last the manifest
to their places; only a set with a manifest counts. ``commit`` makes what was written so far last:
a run that is killed can go on from there, with the same bytes in the end. Nothing is kept in
memory but a few counts.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vila_mc import __version__
from vila_mc.data.indexed.dataset_manifest import (
    FORMAT_VERSION,
    PARTIAL_SUFFIX,
    SUFFIX,
    DatasetManifest,
    SetKind,
    to_json,
)
from vila_mc.data.indexed.layout import (
    DTYPE_CODES,
    HEADER,
    LENGTH,
    MAGIC,
    MODE,
    POINTER,
    SIDE,
    VERSION,
    dtype_code,
    text_dtype,
    with_suffix,
)
from vila_mc.data.indexed.serialisation import Serialised, serialise
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError, user_error
from vila_mc.files import Lock, flush, sha256_of, sync_directory, whole_file, write_whole
from vila_mc.flow import EncodedSample

REJECTED_SUFFIX = ".rejected.jsonl"

_CHUNK = 1 << 20
"""Index entries read at a time, so that ``finish`` needs no memory of its own."""
_PARTS = (".bin", ".lengths", ".modes", ".documents", ".sides", REJECTED_SUFFIX)
"""Files in PREFIX.partial that grow; ``documents`` holds where each sample ends, in pieces."""
_FINAL = (REJECTED_SUFFIX, ".bin", ".idx", SUFFIX)
"""What becomes of them, in the order in which they appear."""
_PROGRESS = "progress.json"


@dataclass(slots=True)
class _Counts:
    """What the growing files hold."""

    samples: int = 0
    pieces: int = 0
    tokens: int = 0
    images: int = 0


class IndexedWriter(AbstractContextManager["IndexedWriter"]):
    """One dataset in the making. Use it in a ``with`` block and end that with ``finish``.

    Args:
        prefix: the set becomes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.
        kind: text (tokens alone) or multimodal.
        tokenizer: what the samples were encoded with.
        resume: go on from the last ``commit`` of an earlier writer, if there is one.

    Raises:
        DataError: the set exists already, another run writes it, an unfinished run is in the way
            and ``resume`` is not set, or the disk refuses.
    """

    def __init__(
        self, prefix: Path, kind: SetKind, tokenizer: Tokenizer, *, resume: bool = False
    ) -> None:
        self._prefix = prefix
        self.folder = with_suffix(prefix, PARTIAL_SUFFIX)
        """Where the set grows. Other files in it go when the set is finished."""
        self.kind: SetKind = kind
        self._tokenizer = tokenizer
        self.dtype = text_dtype(tokenizer.vocab_size) if kind == "text" else DTYPE_CODES[1]
        self._counts = _Counts()
        self._is_closed = False
        self._bin_sha256 = hashlib.sha256()
        self.committed: dict[str, Any] | None = None
        """What the last ``commit`` was given; None before the first."""
        refuse_existing(prefix)
        with _as_data_error(self._prefix), contextlib.ExitStack() as on_failure:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(prefix)
            on_failure.callback(self._lock.release)
            saved = self._read_progress(resume)
            self._files: dict[str, BinaryIO] = {
                suffix: on_failure.enter_context((self.folder / f"set{suffix}").open("ab"))
                for suffix in _PARTS
            }
            self._rewind(saved)
            on_failure.pop_all()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, sample: EncodedSample) -> None:
        """Append one sample.

        Raises:
            DataError: a piece is too large, a text-only set is given an image, or the disk is full.
            ValueError: the sample is empty.
        """
        self.append(serialise([sample], self.kind, self.dtype))

    def append(self, samples: Serialised) -> None:
        """Append samples that are serialised for this kind of set. Raises DataError: disk full."""
        counts = self._counts
        ends = counts.pieces + np.cumsum(samples.pieces)
        with _as_data_error(self._prefix):
            self._files[".bin"].write(samples.data)
            self._files[".lengths"].write(samples.lengths.astype(LENGTH).tobytes())
            self._files[".modes"].write(samples.modes.astype(MODE).tobytes())
            self._files[".documents"].write(ends.astype(POINTER).tobytes())
            self._files[".sides"].write(samples.sides.astype(SIDE).tobytes())
        self._bin_sha256.update(samples.data)
        counts.samples += len(samples.pieces)
        counts.pieces += len(samples.lengths)
        counts.tokens += samples.tokens
        counts.images += samples.images

    def reject(self, line: str) -> None:
        """Append a line to PREFIX.rejected.jsonl. Raises DataError: disk full."""
        with _as_data_error(self._prefix):
            self._files[REJECTED_SUFFIX].write(line.encode() + b"\n")

    def bytes_written(self) -> int:
        """Bytes of .bin so far."""
        return self._files[".bin"].tell()

    def commit(self, state: dict[str, Any]) -> None:
        """Make everything so far last through a crash, together with ``state``.

        Args:
            state: what the caller needs to go on; a later writer finds it in ``committed``.
        """
        with _as_data_error(self._prefix):
            for file in self._files.values():
                flush(file)
            sizes = {suffix: file.tell() for suffix, file in self._files.items()}
            saved = {"sizes": sizes, "counts": asdict(self._counts), "state": state}
            write_whole(self.folder / _PROGRESS, json.dumps(saved))
        self.committed = state

    def finish(self, source: dict[str, Any]) -> DatasetManifest:
        """Make the set real: flush, then move the rejected list, .bin, .idx and the manifest.

        Args:
            source: what the set was made from, for the manifest.

        Raises:
            DataError: the disk is full or refuses.
        """
        with _as_data_error(self._prefix):
            for file in self._files.values():
                flush(file)
            index_file = self.folder / "set.idx"
            with index_file.open("wb") as index:
                self._write_index(index)
                flush(index)
            if not self._files[REJECTED_SUFFIX].tell():
                (self.folder / f"set{REJECTED_SUFFIX}").unlink()
                # There may be one of an earlier run, which failed.
                with_suffix(self._prefix, REJECTED_SUFFIX).unlink(missing_ok=True)
            manifest = self._manifest(source, sha256_of(index_file))
            write_whole(self.folder / f"set{SUFFIX}", to_json(manifest))
            _move_into_place(self._prefix)
        self.committed = None
        self.close()
        return manifest

    def close(self) -> None:
        """Close the files. Without a commit nothing is left; with one, what a resume needs."""
        if self._is_closed:
            return
        self._is_closed = True
        for file in self._files.values():
            with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
                file.close()
        if self.committed is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def give_rejected(self) -> Path:
        """Put the list of rejected records in its final place, for a run that failed."""
        target = with_suffix(self._prefix, REJECTED_SUFFIX)
        with _as_data_error(target):
            self._files[REJECTED_SUFFIX].flush()
            with (
                (self.folder / f"set{REJECTED_SUFFIX}").open("rb") as rejected,
                whole_file(target) as copy,
            ):
                shutil.copyfileobj(rejected, copy)
        return target

    def _read_progress(self, resume: bool) -> dict[str, Any] | None:
        file = self.folder / _PROGRESS
        if not file.exists():
            (self.folder / f"set{SUFFIX}").unlink(missing_ok=True)
            return None
        if not resume:
            raise DataError(
                f"there is an unfinished run in {self.folder}. Resume it, or delete that folder "
                "to start anew.",
                option="resume",
            )
        try:
            saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self._counts = _Counts(**saved["counts"])
            known = saved["sizes"].keys()
        except (ValueError, KeyError, TypeError):
            raise DataError(_cannot_resume(self.folder, f"{file.name} is damaged")) from None
        if known != set(_PARTS):
            raise DataError(_cannot_resume(self.folder, "another version of vila_mc wrote it"))
        return saved

    def _rewind(self, saved: dict[str, Any] | None) -> None:
        """Cut every file to what the last commit knew, and hash the data that stays."""
        for suffix, file in self._files.items():
            size = saved["sizes"][suffix] if saved else 0
            if file.tell() < size:
                raise DataError(_cannot_resume(self.folder, f"set{suffix} is too short"))
            file.truncate(size)
            file.seek(size)
        if saved:
            self.committed = saved["state"]
            with (self.folder / "set.bin").open("rb") as data:
                while block := data.read(_CHUNK):
                    self._bin_sha256.update(block)

    def _write_index(self, index: BinaryIO) -> None:
        counts = self._counts
        code = dtype_code(self.dtype)
        index.write(HEADER.pack(MAGIC, VERSION, code, counts.pieces, counts.samples + 1))
        for chunk in self._chunks(".lengths", LENGTH):
            index.write(chunk.tobytes())
        start = 0
        for chunk in self._chunks(".lengths", LENGTH):
            ends = start + np.cumsum(chunk.astype(POINTER) * self.dtype.itemsize)
            index.write(np.concatenate([[start], ends[:-1]]).astype(POINTER).tobytes())
            start = int(ends[-1])
        index.write(bytes(POINTER.itemsize))
        for suffix, dtype in ((".documents", POINTER), (".modes", MODE), (".sides", SIDE)):
            for chunk in self._chunks(suffix, dtype):
                index.write(chunk.tobytes())

    def _chunks(self, suffix: str, dtype: np.dtype) -> Iterator[np.ndarray]:
        with (self.folder / f"set{suffix}").open("rb") as file:
            while block := file.read(_CHUNK * dtype.itemsize):
                yield np.frombuffer(block, dtype)

    def _manifest(self, source: dict[str, Any], idx_sha256: str) -> DatasetManifest:
        return DatasetManifest(
            format_version=FORMAT_VERSION,
            kind=self.kind,
            tokenizer_sha256=self._tokenizer.fingerprint(),
            vocab_size=self._tokenizer.vocab_size,
            samples=self._counts.samples,
            tokens=self._counts.tokens,
            images=self._counts.images,
            bin_bytes=self.bytes_written(),
            idx_sha256=idx_sha256,
            bin_sha256=self._bin_sha256.hexdigest(),
            source=source,
            tool_version=__version__,
        )


def is_finished(prefix: Path) -> bool:
    """Whether there is a finished set."""
    return with_suffix(prefix, SUFFIX).exists()


def refuse_existing(prefix: Path) -> None:
    """Never overwrite a finished set. Raises DataError."""
    if is_finished(prefix):
        raise DataError(
            f"the dataset {prefix} exists already. Delete its .bin, .idx and .manifest.json, "
            "choose another output, or resume to keep what is finished.",
            option="resume",
        )


def complete_moves(prefix: Path) -> None:
    """Complete a ``finish`` that was killed while it moved files or removed others.

    Raises:
        DataError: another run is moving them, or the disk refuses.
    """
    folder = with_suffix(prefix, PARTIAL_SUFFIX)
    if not folder.exists() or not (is_finished(prefix) or (folder / f"set{SUFFIX}").exists()):
        return
    with _as_data_error(prefix):
        lock = _lock(prefix)
        try:
            _move_into_place(prefix)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()


def _move_into_place(prefix: Path) -> None:
    folder = with_suffix(prefix, PARTIAL_SUFFIX)
    for suffix in _FINAL:
        if (folder / f"set{suffix}").exists():
            (folder / f"set{suffix}").replace(with_suffix(prefix, suffix))
    sync_directory(prefix.parent)


def _lock(prefix: Path) -> Lock:
    """Hold the folder in which a set grows. Raises DataError: another run holds it."""
    try:
        return Lock(with_suffix(prefix, PARTIAL_SUFFIX))
    except BlockingIOError:
        raise DataError(
            f"another run is writing {prefix}. Wait for it or choose another output."
        ) from None


def _cannot_resume(folder: Path, why: str) -> str:
    return f"{folder} cannot be resumed: {why}. Delete it to start anew."


@contextlib.contextmanager
def _as_data_error(prefix: Path) -> Iterator[None]:
    """Speak of the set, not of the files that it is put together from."""
    try:
        yield
    except OSError as error:
        error.filename = str(prefix)
        raise user_error(error) or DataError(f"{prefix} cannot be written: {error}.") from None

"""Writing an indexed dataset: whole or not at all, in flat memory, onwards from a commit."""

import contextlib
import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.pieces import text_piece
from vila_mc.data.indexed import serialisation
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter, complete_moves
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError, SetupError
from vila_mc.flow import EncodedSample, ImagePiece

ONE = EncodedSample((text_piece((1,), True),))


def test_nothing_is_left_of_an_unfinished_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer,
    ):
        writer.add(EncodedSample((text_piece((1,), True),)))
        assert os.listdir(tmp_path) == ["set.partial"]
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_manifest_comes_last(
    tmp_path: Path, make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, target: (renamed.append(target), replace(self, target))[1],
    )
    make_set(tmp_path / "set", 1)
    placed = [target.name for target in renamed if target.parent == tmp_path]
    assert placed == ["set.bin", "set.idx", "set.manifest.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(placed)


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_that_fills_up_while_adding(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        full = type("Full", (), {"write": refuse, "close": refuse})()
        monkeypatch.setitem(writer._files, ".bin", full)
        with pytest.raises(SetupError, match=r"no space left for .*set.*Free some space"):
            writer.add(ONE)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_up_at_the_end(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(ONE)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SetupError, match=r"no space left for .*set.*Free some space"):
            writer.finish({})
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="file"):
        IndexedWriter(tmp_path / "file" / "set", "text", tokenizer)


def test_finished_set_is_never_overwritten(
    tmp_path: Path, tokenizer: Tokenizer, make_set: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"exists already\. Delete"):
        IndexedWriter(make_set(tmp_path / "set", 1), "text", tokenizer)


def test_second_run_on_the_same_prefix(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as first:
        first.add(ONE)
        with pytest.raises(DataError, match="another run is writing"):
            IndexedWriter(tmp_path / "set", "multimodal", tokenizer)
        assert first.finish({}).samples == 1


def test_leftovers_of_a_crash_are_overwritten(
    tmp_path: Path, make_set: Callable[..., Path]
) -> None:
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "set.bin").write_bytes(b"half")
    (tmp_path / "set.bin").write_bytes(b"half")
    with pytest.raises(DataError, match="set is not finished"):
        IndexedReader(tmp_path / "set")
    assert len(IndexedReader(make_set(tmp_path / "set", 2))) == 2


def test_memory_does_not_grow_with_the_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    count = 20_000
    documents = serialisation.Serialised(
        data=bytes(2 * count),
        lengths=np.ones(count, np.int32),
        modes=np.empty(0, np.int8),
        pieces=np.ones(count, np.int64),
        sides=np.empty((0, 2), np.int32),
        tokens=count,
    )
    with IndexedWriter(tmp_path / "set", "text", tokenizer) as writer:
        tracemalloc.start()
        for _ in range(100):
            writer.append(documents)
        _, while_adding = tracemalloc.get_traced_memory()
        writer.finish({})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "set.idx").stat().st_size > 40e6
    assert while_adding < 2e6
    assert peak < 40e6  # a few chunks of a million entries


def test_text_set_refuses_images(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(DataError, match="a text-only set takes no images"),
    ):
        writer.add(EncodedSample((ImagePiece(b"x", "an image"),)))


def test_empty_sample_is_our_fault(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(ValueError, match="without pieces"),
    ):
        writer.add(EncodedSample(()))


def test_piece_that_is_too_long(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serialisation, "LONGEST_PIECE", 3)
    with (
        IndexedWriter(tmp_path / "set", "text", tokenizer) as writer,
        pytest.raises(DataError, match="a piece of 4 elements is too long"),
    ):
        writer.add(EncodedSample((text_piece((1, 2, 3, 4), True),)))


def numbered(number: int) -> EncodedSample:
    image = ImagePiece(bytes([number]) * number, "an image")
    return EncodedSample((text_piece((1, number), False), image, text_piece((2,), True)))


@pytest.mark.parametrize("written", [0, 1, 4])
def test_killed_writer_goes_on_from_its_commit(
    tmp_path: Path, tokenizer: Tokenizer, written: int
) -> None:
    whole = tmp_path / "whole"
    with IndexedWriter(whole, "multimodal", tokenizer) as writer:
        for number in range(9):
            writer.add(numbered(number))
        writer.finish({"kind": "test"})
    prefix = tmp_path / "set"
    with IndexedWriter(prefix, "multimodal", tokenizer) as writer:
        for number in range(written):
            writer.add(numbered(number))
        writer.reject("before")
        writer.commit({"next": written})
        writer.add(numbered(99))  # lost, for nothing says that it is whole
        writer.reject("lost")
    assert os.listdir(tmp_path / "set.partial")
    with pytest.raises(DataError, match=r"unfinished run in .*set\.partial\. Resume it"):
        IndexedWriter(prefix, "multimodal", tokenizer)
    with IndexedWriter(prefix, "multimodal", tokenizer, resume=True) as writer:
        assert writer.committed == {"next": written}
        for number in range(written, 9):
            writer.add(numbered(number))
        writer.finish({"kind": "test"})
    for suffix in (".bin", ".idx", ".manifest.json"):
        assert Path(f"{prefix}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes()
    assert Path(f"{prefix}.rejected.jsonl").read_text() == "before\n"
    assert not (tmp_path / "set.partial").exists()


@pytest.mark.parametrize("moves", [0, 1, 2, 3, 4])
def test_finish_that_is_killed_between_its_moves(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    prefix = tmp_path / "set"
    complete_moves(prefix)  # there are none
    done: list[Path] = []
    replace = Path.replace

    def dying(self: Path, target: Path) -> None:
        if target.parent == tmp_path:
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(target)
        replace(self, target)
        if len(done) == 4:
            raise KeyboardInterrupt

    with (
        contextlib.suppress(KeyboardInterrupt),
        IndexedWriter(prefix, "multimodal", tokenizer) as writer,
    ):
        writer.add(ONE)
        writer.reject("bad")
        writer.commit({})
        monkeypatch.setattr(Path, "replace", dying)
        writer.finish({})
    monkeypatch.undo()
    if moves < 4:
        with pytest.raises(DataError, match="is not finished"):
            IndexedReader(prefix)
    complete_moves(prefix)
    assert len(IndexedReader(prefix)) == 1
    assert sorted(os.listdir(tmp_path)) == [
        f"set{suffix}" for suffix in (".bin", ".idx", ".manifest.json", ".rejected.jsonl")
    ]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "set.bin").write_bytes(b""), r"set\.bin is too short"),
        (lambda folder: (folder / "progress.json").write_text("{"), "progress.json is damaged"),
    ],
)
def test_damaged_progress_is_not_resumed(
    tmp_path: Path, tokenizer: Tokenizer, damage: Callable[[Path], None], why: str
) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(ONE)
        writer.commit({})
    damage(tmp_path / "set.partial")
    with pytest.raises(DataError, match=f"cannot be resumed: {why}"):
        IndexedWriter(tmp_path / "set", "multimodal", tokenizer, resume=True)


def test_unfinished_set_is_called_that(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(ONE)
        with pytest.raises(DataError, match=r"set is not finished: .* resume preprocessing"):
            IndexedReader(tmp_path / "set")

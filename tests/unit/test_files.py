"""Outputs appear whole or not at all, links are not followed, one process holds a lock."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from vila_mc import files
from vila_mc.errors import user_error
from vila_mc.files import (
    Lock,
    final_name,
    partial_path,
    put_in_place,
    remove,
    sha256_of,
    whole_directory,
    whole_file,
    write_json,
    write_whole,
)


def test_a_file_appears_with_its_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "ä")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä".encode()
    write_json(tmp_path / "c.json", {"x": 1})
    assert (tmp_path / "c.json").read_text() == '{\n  "x": 1\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c.json"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with contextlib.suppress(ZeroDivisionError), whole_file(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_text() == "old"
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_file_is_not_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(FileExistsError, match="pipe or device"):
        write_whole(tmp_path / name, "new")
    assert (tmp_path / name).is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize("name", ["/", ".", ""])
def test_what_has_no_name_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(IsADirectoryError) as refused, whole_file(Path(name)):
        pass
    told = str(user_error(refused.value))
    assert told.startswith(f"{name or '.'} cannot be used: Is a directory. ")


@pytest.mark.parametrize("is_directory", [False, True])
def test_what_stands_under_the_partial_name_is_not_followed(
    tmp_path: Path, is_directory: bool
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    target = tmp_path / "out" / "name"
    target.parent.mkdir()
    partial_path(target).symlink_to(precious if is_directory else precious / "file")
    if is_directory:
        with whole_directory(target) as folder:
            (folder / "file").write_text("new")
    else:
        write_whole(target, "new")
    assert (precious / "file").read_text() == "precious"
    assert not target.is_symlink()


def test_a_link_put_there_in_the_meantime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_text("precious")

    def remove_and_lose_the_race(path: Path) -> None:
        remove(path)
        path.symlink_to(tmp_path / "precious")

    monkeypatch.setattr(files, "remove", remove_and_lose_the_race)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "name", "new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_directory_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with whole_directory(final) as folder:
        (folder / "a").touch()
        assert not final.exists()
    with pytest.raises(ZeroDivisionError), whole_directory(final) as folder:
        raise ZeroDivisionError
    assert [path.name for path in final.iterdir()] == ["a"]
    with whole_directory(final) as folder:
        (folder / "b").touch()
    assert [path.name for path in final.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_directory_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "missing", final)
    assert [path.name for path in final.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["a.txt", "step-1.old", ".hidden", "x.partial"])
def test_names_of_partials(name: str) -> None:
    assert final_name(partial_path(Path(name)).name) == name
    assert final_name(name) == name


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_a_lock_keeps_others_out_until_the_last_holder_ends(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(BlockingIOError):
        Lock(tmp_path)
    ready, go = os.pipe(), os.pipe()
    if os.fork() == 0:  # a background save, which outlives its trainer
        os.write(ready[1], b".")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    lock.release()
    with pytest.raises(BlockingIOError):
        Lock(tmp_path)
    os.write(go[1], b".")
    os.wait()
    Lock(tmp_path).release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)  # type: ignore[attr-defined]
    Lock(tmp_path).release()

"""The files that a user names."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.data.sources.pairs import PairsOptions
from vila_mc.errors import ConfigError, DataError

Write = Callable[..., Path]


def test_expand_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in expand_inputs([str(tmp_path / "*.jsonl")])] == [
        "a.jsonl",
        "b.jsonl",
    ]
    monkeypatch.chdir(tmp_path)
    assert expand_inputs(["c.txt", "*.jsonl"]) == [Path(n) for n in ("c.txt", "a.jsonl", "b.jsonl")]
    for nothing in ("none*", "/none"):
        with pytest.raises(DataError, match=r"no file matches .*none"):
            expand_inputs([nothing])
    for folder in (str(tmp_path), "/", "."):
        with pytest.raises(DataError, match=rf"{folder} is a folder\. Name its files"):
            expand_inputs([folder])
    with pytest.raises(DataError, match=r"b\.jsonl is named 2 times"):
        expand_inputs(["b.jsonl", "*.jsonl"])


def test_images_are_one_folder_or_archives(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    for name in ("pics", "vids"):
        (tmp_path / name).mkdir()
    folders = (str(tmp_path / "pics"), str(tmp_path / "vids"))
    options = PairsOptions(
        input=(str(tmp_path / "a.jsonl"),), output="x", tokenizer=Path("t"), images=folders
    )
    with pytest.raises(
        ConfigError, match=r"pics, a folder, and 1 more\. Give one folder, in which"
    ):
        options.source()


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "b.jsonl").write_text("")
    for name, told in (
        ("pipe", r"pipe\.jsonl is a pipe or a device\. Save what it gives in a file"),
        ("gone", r"gone\.jsonl is a link to nothing"),
        ("folder", r"folder\.jsonl is a folder\. Name its files"),
    ):
        for pattern in (f"{name}.jsonl", f"{name[0]}*"):
            with pytest.raises(DataError, match=told):
                expand_inputs([str(tmp_path / pattern)])
    nested = [str(tmp_path / "[af]*.jsonl")]
    assert [path.name for path in expand_inputs(nested, endings=[".jsonl"])] == [
        "a.jsonl",
        "b.jsonl",
    ]
    assert [path.name for path in expand_inputs([str(tmp_path / "folder*/**")])] == ["b.jsonl"]
    with pytest.raises(DataError, match=r"no file matches"):
        expand_inputs([str(tmp_path / "**/folder.jsonl")])

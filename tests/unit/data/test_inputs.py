"""The files that a user names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.errors import DataError

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

"""What a rank tells the launcher of its machine."""

import os
import threading
from pathlib import Path

import pytest

from vila_mc.train.rank_status import StatusWriter, read_ending, read_heartbeat


def test_an_end_is_told_while_a_heartbeat_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    is_written, has_ended, is_replaced = threading.Event(), threading.Event(), threading.Event()
    is_whole = []

    def replace_after_the_end(source: Path, target: Path) -> None:
        if target.suffix == ".alive":
            is_written.set()
            has_ended.wait()
            is_whole.append(source.exists())
        replace(source, target)
        if target.suffix == ".alive":
            is_replaced.set()

    monkeypatch.setattr(os, "replace", replace_after_the_end)
    status = StatusWriter(tmp_path, 0)
    is_written.wait()
    status.end("user", "a reason", ValueError())
    has_ended.set()
    is_replaced.wait()
    assert is_whole[0]
    ending = read_ending(tmp_path, 0)
    assert ending is not None
    assert ending.message == "a reason"
    assert read_heartbeat(tmp_path, 0) is not None

"""A second run in an output directory says that it waits, then goes on or is refused."""

from pathlib import Path

import pytest

from vila_mc.errors import HeldOutputError
from vila_mc.files import Lock
from vila_mc.train import own_output


def test_a_free_directory_is_taken_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_output._locked(tmp_path).release()
    assert capsys.readouterr() == ("", "")


def test_a_held_directory_is_waited_for_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_output, "_PATIENCE_SECONDS", 0.2)
    held = Lock(tmp_path)
    with pytest.raises(HeldOutputError, match="Wait for it or stop it"):
        own_output._locked(tmp_path)
    assert f"another run is writing to {tmp_path}; waiting" in "".join(capsys.readouterr())

    monkeypatch.setattr(own_output, "say", lambda _: held.release())  # it ends meanwhile
    own_output._locked(tmp_path).release()

"""Which commit a package runs from."""

import subprocess
from pathlib import Path

from vila_mc.observe.git import git_state


def _git(folder: Path, *command: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_a_checkout_has_a_commit_and_may_be_modified(tmp_path: Path) -> None:
    assert git_state(tmp_path / "nowhere") is None
    folder = tmp_path / "package"
    folder.mkdir()
    _git(folder, "init")
    assert git_state(folder) is None  # no commit yet
    (folder / "a.py").write_text("1\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-m", "first")
    (folder / "new.txt").write_text("")
    state = git_state(folder)
    assert state is not None
    assert len(str(state["commit"])) == 40
    assert not state["is_modified"]
    (folder / "a.py").write_text("2\n")
    assert git_state(folder) == {**state, "is_modified": True}

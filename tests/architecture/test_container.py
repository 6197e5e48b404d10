"""containers/Dockerfile: a pinned base whose torch stays, and nothing of this machine."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "containers/Dockerfile").read_text()


def test_the_base_is_pinned_and_what_runs_is_no_root() -> None:
    assert re.findall(r"^FROM (.*)", DOCKERFILE, flags=re.MULTILINE) == [
        "nvcr.io/nvidia/pytorch:26.03-py3"
    ]
    (*_, user) = re.findall(r"^USER (.*)", DOCKERFILE, flags=re.MULTILINE)
    assert int(user) >= 1000
    assert f"--uid {user} " in DOCKERFILE


def test_torch_is_asked_for_by_nobody() -> None:
    commands = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    assert "pip install" not in commands
    assert "bash tools/setup_venv.sh" in commands  # which leaves it alone


def test_what_git_ignores_stays_out_of_the_image() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    kept_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert not [name for name in sorted(ignored) if f"**/{name}" not in kept_out]
    assert ".git" in kept_out

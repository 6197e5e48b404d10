"""Which commit a package runs from."""

import subprocess
from pathlib import Path

_LONGEST_SECONDS = 10


def git_state(directory: Path) -> dict[str, str | bool] | None:
    """The commit of the checkout that ``directory`` lies in, and whether its files differ from it.

    Returns:
        ``commit`` and ``is_modified``; None where there is no checkout, or no git.
    """
    commit = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "-s", "-uno")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "is_modified": bool(changes.strip())}


def _git(directory: Path, *command: str) -> str | None:
    # A checkout may name programs to run, which nobody asked for here.
    quiet = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *quiet, *command],
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

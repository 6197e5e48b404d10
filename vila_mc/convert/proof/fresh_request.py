"""What a proof asks of a fresh process, and what comes back.

The process has no network, no GPU, and no code that was cached from another directory. It is slow
to start, so it gets all requests of a proof at once.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vila_mc.errors import CheckpointError, SetupError

VALUES, TENSORS, RESULT = "request.json", "tensors.safetensors", "result.json"
INSTALLED_BY = {
    "transformers": "pip install 'vila_mc[hf]'",
    **dict.fromkeys(("peft", "accelerate"), "pip install --no-deps peft accelerate"),
}
"""What brings a package that a proof may need. What peft asks for besides is there already."""
_CHILD = "vila_mc.convert.proof.fresh_process"
_SHOWN_LINES = 3


@dataclass(frozen=True, slots=True)
class FreshRequest:
    """One directory to load, and what to compare it with."""

    check: str
    """Which comparison: a key of ``fresh_process.CHECKS``."""
    directory: Path
    values: Mapping[str, Any]
    """What the comparison wants to know, as JSON."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put the request where the fresh process reads it."""
        folder.mkdir()
        named = {"check": self.check, "directory": str(self.directory.absolute())}
        (folder / VALUES).write_text(json.dumps(named | dict(self.values)), encoding="utf-8")
        save_file({n: t.contiguous() for n, t in self.tensors.items()}, folder / TENSORS)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def require_installed(*packages: str) -> None:
    """Refuse a proof before anything is written that it is to prove.

    Args:
        packages: keys of ``INSTALLED_BY`` that it needs.

    Raises:
        SetupError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise SetupError(
                f"the proof needs {package}, which is not installed. Install it "
                f"({INSTALLED_BY[package]}), or leave out the proof.",
                option="no_verify",
            )


def answers_of_fresh_process(
    requests: Sequence[FreshRequest], timeout_s: float
) -> list[dict[str, Any]]:
    """Start a fresh process and have it answer every request.

    Args:
        requests: what to load and compare.
        timeout_s: seconds after which the process is stopped.

    Raises:
        CheckpointError: it died before a request was answered, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="vila-proof-") as parent:
        folders = [Path(parent) / str(number) for number in range(len(requests))]
        for folder, request in zip(folders, requests, strict=True):
            request.write(folder)
        try:
            said = _run(Path(parent), timeout_s)
        except subprocess.TimeoutExpired:
            raise CheckpointError(
                f"comparing {requests[0].directory} took more than {timeout_s:.0f} s. Use a "
                "shorter reference."
            ) from None
        for folder, request in zip(folders, requests, strict=True):
            if not (folder / RESULT).exists():
                raise CheckpointError(
                    f"{request.directory} does not load in a fresh process: {said}"
                )
        return [json.loads((folder / RESULT).read_text("utf-8")) for folder in folders]


def _run(folder: Path, timeout_s: float) -> str:
    """The last lines of what the process says of its end."""
    finished = subprocess.run(
        [sys.executable, "-m", _CHILD, str(folder)],
        env=_offline_environment(os.environ, folder),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return " | ".join(lines[-_SHOWN_LINES:])[-600:]


def _offline_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[3])
    paths = [package_root, environment.get("PYTHONPATH", "")]
    return {
        **environment,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }

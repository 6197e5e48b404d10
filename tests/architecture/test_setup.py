"""What set-up installs, and what it leaves alone."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "transformer_engine.lock")
LOCK = (ROOT / LOCKS[0]).read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, flags=re.MULTILINE))


def requirements() -> list[Requirement]:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = said["project"]["optional-dependencies"]
    lines = said["build-system"]["requires"] + said["project"]["dependencies"]
    return [Requirement(line) for line in lines + extras["hf"] + extras["examples"] + extras["dev"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_is_within_the_ranges(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier
    assert any(one.operator in ("<", "==") for one in requirement.specifier) or (
        requirement.name == "setuptools"
    )


def test_every_line_of_the_lock_has_hashes_and_names_no_host() -> None:
    entries = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINS)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    for name in ("torch", "megatron-core"):
        (entry,) = [one for one in entries if one.startswith(f"{name}==")]
        assert entry.count("--hash") >= 4  # Python 3.12 and 3.13, two kinds of processors


@pytest.mark.parametrize("stamp", [None, "key /another/checkout\n"])
def test_a_linked_venv_of_another_checkout_is_left_alone(tmp_path: Path, stamp: str | None) -> None:
    checkout, other = tmp_path / "checkout", tmp_path / "other" / ".venv"
    (checkout / "tools").mkdir(parents=True)
    (checkout / "csrc").mkdir()
    for name in ("tools/setup_venv.sh", "pyproject.toml", "setup.py", *LOCKS):
        shutil.copy(ROOT / name, checkout / name)
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "keep").write_text("mine")
    if stamp is not None:
        (other / "setup.stamp").write_text(stamp)
    (checkout / ".venv").symlink_to(other)
    done = subprocess.run(
        ["bash", "tools/setup_venv.sh"],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/none"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "which is not this checkout's" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (other / "bin" / "keep").read_text() == "mine"


def test_unpacking_says_how_far_it_is(tmp_path: Path) -> None:
    """Fed like pip, line by line; what it says is waited for."""
    (tmp_path / "tools").mkdir()
    script = (ROOT / "tools" / "setup_venv.sh").read_text()
    functions = tmp_path / "tools" / "functions.sh"
    functions.write_text(
        script.replace("\nsetup_venv || exit", "").replace("patience=10", "patience=0.1")
    )
    packages = tmp_path / ".venv" / "lib" / "python3.12" / "site-packages"
    (packages / "before.dist-info").mkdir(parents=True)
    os.utime(packages / "before.dist-info", (0, 0))
    command = ["bash", "-c", f"source {functions}; _setup_progress"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Collecting a\nInstalling collected packages: a, b, c\n")
        assert process.stdout.readline() == "  unpacking 3 packages ...\n"
        (packages / "a-1.dist-info").mkdir()
        shown = ""
        while "1 of 3" not in shown:
            shown = process.stdout.readline()
            assert re.fullmatch(r"  unpacked [01] of 3 \.\.\.\n", shown)
        process.stdin.write("Successfully inst")  # a line may come in parts
        process.stdin.write("alled a b c\nBuilding csrc\n")
        rest, _ = process.communicate(timeout=60)
    assert rest.endswith("  building csrc (20 s) ...\n")
    assert "Successfully installed a b c\n" in (tmp_path / ".venv" / "setup.log").read_text()

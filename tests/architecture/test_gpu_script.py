"""tests/gpu.sh starts what there is to start, with a stand-in for Python: no GPU, no torch."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "gpu.sh"
TESTS = ["kernels", "attention", "engine", "layers", "memory", "runs"]
STEPS = [*TESTS, "memcheck", "racecheck", "speed", "steps", "saves"]
PYTHON = """#!/bin/bash
[[ $1 == - ]] && exit 0
echo "$TORCHDYNAMO_DISABLE $*" >>"$CALLS"
case "$*" in
    *--collect-only*) [[ -n $NO_TESTS ]] && exit 5
        printf 'tests/e2e/test_gpu.py::test_%s\\n' 'one[a b]' two ;;
    *gpu_kernels*) exit 3 ;;
    *parity/test_gpu.py*) echo '| a figure | 1e-7 |' ;;
    *test_gpu_layers*) printf '| another | 1e-3 |\\nSKIPPED [4] no Transformer Engine here\\n'
        echo '===== 4 skipped in 0.1s =====' ;;
    *test_gpu_attention*) echo '| attention | 1e-5 |' ;;
esac
"""
TOOL = "#!/bin/bash\necho ERROR SUMMARY: 0 errors\n"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose Python notes what it is asked, and does nothing."""
    for name, text in (("python", PYTHON), ("nvidia-smi", TOOL), ("compute-sanitizer", TOOL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "CALLS": str(tmp_path / "calls"),
        "OUT": str(tmp_path / "out"),
    }


def gpu_tests(machine: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *options],
        env=machine,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def results(said: str) -> dict[str, str]:
    """How each step ended, as its table says."""
    table = said[said.index("| step |") :]
    return dict(re.findall(r"^\| ([\w-]+) \| (passed|FAILED|stopped)", table, flags=re.MULTILINE))


def test_every_step_is_run_and_one_that_fails_spares_the_others(machine: dict[str, str]) -> None:
    done = gpu_tests(machine)
    assert done.returncode == 1, done.stderr
    ended = results(done.stdout)
    whole_runs = {"runs-one_a_b_": "passed", "runs-two": "passed"}
    passed = dict.fromkeys(["build", *STEPS], "passed") | whole_runs | {"speed": "FAILED"}
    assert ended == {name: how for name, how in passed.items() if name != "runs"}
    table = Path(machine["OUT"], "table.md").read_text()
    for figure in ("a figure | 1e-7", "another | 1e-3", "attention | 1e-5"):
        assert f"| {figure} |" in table
    assert re.search(r"\| layers \| passed \| \d+ s \| 4 skipped in 0\.1s \|", table)
    assert "\nSKIPPED [4] no Transformer Engine here\n" in done.stdout, "what is not there is named"
    calls = Path(machine["CALLS"]).read_text()
    assert "::test_one[a b]" in calls
    assert all(line.startswith("0 ") for line in calls.splitlines()), "what trains is compiled"


@pytest.mark.parametrize("step", STEPS)
def test_a_step_can_be_run_alone(step: str, machine: dict[str, str]) -> None:
    done = gpu_tests(machine, "--only", step)
    assert done.returncode == (step == "speed"), done.stderr
    assert {name.split("-")[0] for name in results(done.stdout)} == {"build", step}


def test_whole_runs_that_cannot_be_listed_fail(machine: dict[str, str]) -> None:
    done = gpu_tests(machine | {"NO_TESTS": "1"}, "--only", "runs")
    assert done.returncode == 1
    assert results(done.stdout) == {"build": "passed", "runs": "FAILED"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--only", "engine,stops"), "error: --only stops is not a step; there are: kernels "),
        (("--minutes", "0"), "error: --minutes 0 is not a number of minutes"),
        (("--fast",), "error: --fast is not an option"),
    ],
    ids=["step", "minutes", "option"],
)
def test_what_there_is_not_is_refused(
    options: tuple[str, ...], complaint: str, machine: dict[str, str]
) -> None:
    done = gpu_tests(machine, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1


def test_every_test_that_needs_a_gpu_is_in_a_step() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark." + "gpu" in path.read_text()
    }
    script = SCRIPT.read_text()
    assert marked
    assert not [path for path in sorted(marked) if path not in script]

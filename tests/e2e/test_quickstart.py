"""The quickstart from raw files to its report, with a little of everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launching import REPOSITORY

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SCRIPT = "examples/quickstart.py"
STEPS = ("raw data", "preprocess", "train align", "train pretrain", "train sft", "evaluate")


def quickstart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As the README says it; where .venv is another's, without its set-up."""
    is_ours = Path(sys.prefix) == REPOSITORY / ".venv"
    door = ["bash", "examples/quickstart.sh"] if is_ours else [sys.executable, SCRIPT]
    return subprocess.run(
        [*door, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


@pytest.mark.slow
def test_the_quickstart_reaches_its_report(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = quickstart(output, "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr

    result = json.loads((output / "result.json").read_text())
    assert {*result["seconds"]} == {*STEPS, "export", "report"}
    assert result["accuracy"]["which_digit"]["count"] == 40
    assert result["accuracy"]["larger_digit"]["count"] == 45
    assert result["export"]["max_logit_difference"] < 1e-3
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 85
    assert {"expected", "answer", "is_correct"} <= answers[0].keys()
    page = (output / "report.html").read_text()
    for panel in ("loss", "gradient norm", "learning rate"):
        assert page.count(f'<figure aria-label="{panel}">') == 3
    assert "Which digit is this?" in page

    for other, said in ((), "with --smoke"), (("--smoke", "--precision", "bf16"), "precision fp32"):
        refused = quickstart(output, *other)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1

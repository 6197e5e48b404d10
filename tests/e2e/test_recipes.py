"""The recipes' scripts at CPU size: three phases in a row, the second of them as a job of SLURM.

SLURM is played by two small commands: ``srun`` starts two launchers on this machine, and each finds
half of the GPUs that the recipe's layout needs.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import forked
from tests.support.launching import REPOSITORY, kill_all, python_path, steps_done, wait_until
from tests.support.ranks import run_ranks
from tests.support.recipe_smoke import config_of, train, words_of_smoke
from vila_mc.checkpoint.directories import whole_checkpoints
from vila_mc.commands.train import main as train_command

SRUN = """#!/bin/bash
echo "$*" >>"$CALLS/srun"
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
    SLURM_NODEID=$node SLURM_GPUS_ON_NODE=2 "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do
        status=0
        wait "$task" || status=$?
    done
    ((worst >= status)) || worst=$status
done
exit "${worst:-0}"
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$CALLS/scontrol"
case "$1 $2" in
    "show hostnames") printf 'localhost\\nlocalhost\\n' ;;
    "show job") echo "JobId=17 JobState=${JOB_STATE:-RUNNING} Reason=None" ;;
esac
"""


def _environment(more: Mapping[str, object]) -> dict[str, str]:
    """As a person has it; where .venv is another's, its interpreter is named."""
    ours = Path(sys.prefix) == REPOSITORY / ".venv"
    python = {} if ours else {"VILA_MC_PYTHON": sys.executable}
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **threads, **python, **{name: str(value) for name, value in more.items()}}


def _smoke(script: str, folder: Path, *options: object) -> str:
    """What ``script --smoke`` prints of its training; ``folder / "out"`` is its output."""
    folder.mkdir()
    done = forked.train(*words_of_smoke(script, folder, *map(str, options)))
    assert done.code == 0, done.err
    return done.out


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, object]:
    """The environment of a job on two machines."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    calls.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "CALLS": calls,
        "SLURM_JOB_ID": 17,
        "SLURM_NNODES": 2,
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_SUBMIT_DIR": REPOSITORY,
    }


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_three_phases_the_second_as_a_job(
    slurm: dict[str, object], tmp_path: Path, unused_port: int
) -> None:
    align, pretrain, sft = tmp_path / "align" / "out", tmp_path / "pretrain", tmp_path / "sft"
    said = _smoke("examples/align_7b.sh", align.parent)
    assert "tensor 1 x pipeline 1 x data 2" in said
    assert "random weights" in said

    paths = dict(MMC4=align / "interleaved", COYO=align / "pairs", PORT=unused_port)
    paths |= dict(TOKENIZER=align / "tokenizer.model", LOAD=align / "checkpoints", OUTPUT=pretrain)
    job = subprocess.Popen(
        [
            *("bash", "examples/slurm/pretrain_7b.sbatch", "--config", "examples/smoke.yaml"),
            *("--train.steps", "100000"),
        ],
        env=_environment(slurm | paths),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(
            lambda: steps_done(pretrain) > 0 or job.poll() is not None, "a step", timeout=240
        )
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=120)
    finally:
        kill_all(psutil.Process(job.pid).children(recursive=True) if job.poll() is None else [])
        job.kill()
    assert job.returncode == 0, said
    assert "tensor 2 x pipeline 2 x data 1" in said
    assert "stopped and saved" in said
    assert Path(str(slurm["CALLS"]), "scontrol").read_text().splitlines() == [
        "show hostnames node[0-1]",
        "show job --oneliner 17",
        "requeue 17",
    ]
    assert whole_checkpoints(pretrain)

    said = _smoke("examples/sft_7b.sh", sft, "--load", pretrain)
    assert "tensor 2 x pipeline 2 x data 1" in said
    assert "random weights" not in said
    assert whole_checkpoints(sft / "out" / "checkpoints")


@pytest.mark.slow
def test_the_second_phase_at_13b(tmp_path: Path) -> None:
    words = words_of_smoke("examples/pretrain_13b.sh", tmp_path)
    assert train_command([*words, "--check"]) == 0
    assert not list((tmp_path / "out/checkpoints").glob("step*"))
    ranks, _ = config_of(words)
    done = run_ranks(ranks, train, words)
    assert done == [(3, "tensor 4 x pipeline 2 x data 1")] * 8
    assert whole_checkpoints(tmp_path / "out" / "checkpoints")


def test_a_job_in_a_container_names_image_and_mounts(slurm: dict[str, object]) -> None:
    more = {"CONTAINER": "/images/vila_mc.sqsh", "MOUNTS": "/data:/data"}
    done = subprocess.run(
        ["bash", "examples/slurm/pretrain_13b.sbatch", "--optimizer.lr", "1e-5"],
        env=_environment(slurm | more),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: no path for mmc4. Give --mmc4 PATH or set MMC4; see --help." in done.stderr
    assert Path(str(slurm["CALLS"]), "srun").read_text().splitlines() == [
        "--ntasks-per-node=1 --kill-on-bad-exit=0 --container-image=/images/vila_mc.sqsh "
        "--container-workdir=/opt/vila_mc --container-mounts=/data:/data "
        "bash examples/pretrain_13b.sh --max-restarts 3 --optimizer.lr 1e-5"
    ]
    assert not Path(str(slurm["CALLS"]), "scontrol").read_text().count("requeue")


@pytest.mark.parametrize(
    ("status", "state", "code", "is_requeued"),
    [
        (0, "RUNNING", 0, False),
        (85, "RUNNING", 0, True),
        (85, "COMPLETING", 85, False),  # scancel
        (1, "RUNNING", 1, False),
        (2, "RUNNING", 2, False),
        (130, "RUNNING", 130, False),
    ],
)
def test_a_job_goes_back_into_the_queue_when_its_run_says_so(
    status: int, state: str, code: int, is_requeued: bool, slurm: dict[str, object], tmp_path: Path
) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >"$CALLS/srun"\nexit {status}\n')
    command = ["bash", "examples/slurm/pretrain_7b.sbatch", "--data.blend", "[{path: a b}]"]
    environment = _environment(slurm | {"JOB_STATE": state, "RESTARTS": 5})
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == code
    calls = Path(str(slurm["CALLS"]))
    assert ("requeue 17" in (calls / "scontrol").read_text()) == is_requeued
    assert (calls / "srun").read_text().splitlines()[2:] == [
        *("bash", "examples/pretrain_7b.sh", "--max-restarts", "5"),
        *("--data.blend", "[{path: a b}]"),
    ]


@pytest.mark.parametrize("script", ["align_7b", "pretrain_7b", "sft_7b", "pretrain_13b"])
def test_a_script_says_what_it_takes_and_what_it_lacks(script: str) -> None:
    command = ["bash", f"examples/{script}.sh"]
    run: Any = dict(capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)
    said = subprocess.run([*command, "--help"], env=_environment({}), **run)
    assert f"bash examples/{script}.sh --smoke" in said.stdout
    assert "--load DIR" in said.stdout
    assert "set -" not in said.stdout
    lacking = subprocess.run([*command, "--tokenizer"], env=_environment({}), **run)
    assert (lacking.returncode, lacking.stderr) == (2, "error: --tokenizer needs a value.\n")
    no_gpu = subprocess.run(command, env=_environment({"SLURM_GPUS_ON_NODE": 0}), **run)
    assert no_gpu.returncode == 2
    assert "error: no NVIDIA GPU here" in no_gpu.stderr


@pytest.mark.parametrize("gpus", [0, 8])
def test_a_wrong_option_is_said_before_what_else_is_missing(gpus: int) -> None:
    done = subprocess.run(
        ["bash", "examples/sft_7b.sh", "--optimizer.lrr", "1"],
        env=_environment({"SLURM_GPUS_ON_NODE": gpus}),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --optimizer.lrr is not an option. Did you mean --optimizer.lr?\n"
    )


DOORS = """#!/bin/bash
tool=
for word; do
    [[ $word != */tools/* ]] || tool="$word"
    [[ ${before:-} != --write && ${before:-} != --rehearsal ]] || touch "$word"
    before="$word"
done
[[ -z $tool ]] || { echo "${*#"$ROOT"/}" >>"$WORDS" && eval "${DOOR:-}"; exit "${STATUS:-0}"; }
exec "$REAL" "$@"
"""


def _dry_run(folder: Path, *options: object, status: int = 0) -> tuple[int, str, list[str]]:
    """Exit code, output and the doors that a dry run of pretrain_7b goes through."""
    interpreter, words = folder / "python", folder / "words"
    interpreter.write_text(DOORS)
    interpreter.chmod(0o755)
    words.write_text("")
    own = {"REAL": sys.executable, "WORDS": words, "ROOT": REPOSITORY, "STATUS": status}
    done = subprocess.run(
        ["bash", "examples/pretrain_7b.sh", "--dry-run", *map(str, options)],
        cwd=REPOSITORY,
        env={**_environment(own), "VILA_MC_PYTHON": str(interpreter)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, words.read_text().splitlines()


def test_a_dry_run_plans_rehearses_and_checks(tmp_path: Path) -> None:
    code, said, doors = _dry_run(tmp_path, 128, "--optimizer.lr", "1e-5")
    yaml = "--config examples/pretrain_7b.yaml"
    plan = f"tools/plan_cluster.py {yaml} --gpus 128 --gpu a100-80g --optimizer.lr 1e-5"
    rehearsal = (
        f"tools/train.py {yaml} --rehearse --as-ranks 128 --gpu a100-80g --optimizer.lr 1e-5"
    )
    assert (code, doors) == (0, [plan, rehearsal])
    assert "no path for --mmc4 --coyo --tokenizer --load --output." in said

    names = ("mmc4", "coyo", "tokenizer", "load", "output")
    paths = [word for name in names for word in (f"--{name}", f"/d/{name}")]
    code, said, doors = _dry_run(tmp_path, 8, "--gpu", "h200", *paths, status=2)
    assert code == 2  # what any of them ends with
    assert "--gpus 8 --gpu h200" in doors[0]
    data = (
        "--data.tokenizer /d/tokenizer --data.blend "
        "[{path: '/d/mmc4', weight: 1}, {path: '/d/coyo', weight: 1}, ]"
    )
    assert doors[1] == f"tools/train.py {yaml} --rehearse --as-ranks 8 --gpu h200 {data}"
    load = "--train.load /d/load --train.output /d/output"
    assert doors[2] == f"tools/train.py {yaml} --check --ranks 8 {data} {load}"
    assert "are not checked" not in said


def test_a_dry_run_rehearses_the_best_layout_too(tmp_path: Path) -> None:
    code, said, doors = _dry_run(tmp_path, 8, "--best", "--optimizer.lr", "1e-5")
    plan, own, best = doors
    written = plan.partition("--write ")[2].split()[0]
    assert best == own.replace(".yaml --rehearse", f".yaml --config {written} --rehearse")
    assert code == 0
    assert said.index("the first layout of the plan:")
    assert not Path(written).exists()


def test_a_dry_run_says_nothing_of_files_that_it_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = (
        'all="$*"; [[ $all != *"--write "* ]] || { echo a plan; echo "wrote ${all##*--write }"; }'
    )
    monkeypatch.setenv("DOOR", says)
    code, said, _ = _dry_run(tmp_path, 8, "--best")
    assert code == 0
    assert "a plan\n" in said
    assert "wrote" not in said


def test_a_dry_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    interpreter, temporary = tmp_path / "python", tmp_path / "temporary"
    interpreter.write_text(DOORS)
    interpreter.chmod(0o755)
    temporary.mkdir()
    # the rehearsal says that it is there, and stays
    door = (
        '[[ "$*" != *--rehearse* ]] || '
        '{ echo $$ >"$PID.new"; mv "$PID.new" "$PID"; exec sleep 60; }'
    )
    own = {"REAL": sys.executable, "WORDS": tmp_path / "words", "ROOT": REPOSITORY, "DOOR": door}
    more = {"VILA_MC_PYTHON": interpreter, "PID": tmp_path / "pid", "TMPDIR": temporary}
    script = subprocess.Popen(
        ["bash", "examples/pretrain_7b.sh", "--dry-run", "8", "--best"],
        cwd=REPOSITORY,
        env=_environment(own | more),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "pid").exists, "a rehearsal")
        rehearsal = psutil.Process(int((tmp_path / "pid").read_text()))
        assert len(list(temporary.iterdir())) == 1
        script.terminate()
        assert script.wait(timeout=30) == 128 + signal.SIGTERM
        assert not rehearsal.is_running()
        assert list(temporary.iterdir()) == []
    finally:
        kill_all(
            psutil.Process(script.pid).children(recursive=True) if script.poll() is None else []
        )
        script.kill()
        script.wait()


def test_a_dry_run_puts_the_last_rehearsal_on_a_page(tmp_path: Path) -> None:
    code, _, doors = _dry_run(
        tmp_path, 8, "--page", "plan.html", "--best", "--optimizer.lr", "1e-5"
    )
    plan, own, best, page = doors
    layout = plan.partition("--write ")[2].split()[0]
    rehearsal = own.partition("--rehearsal ")[2].split()[0]
    assert f"--rehearsal {rehearsal}" in best
    written = f"--html plan.html --rehearsal {rehearsal}"
    on, _, options = plan.partition(f" --write {layout}")
    assert page == on.replace(".yaml", f".yaml --config {layout}") + f" {written}{options}"
    assert code == 0
    assert _dry_run(tmp_path, 8, "--page")[:2] == (2, "error: --page needs a file.\n")


@pytest.mark.parametrize("count", ["0", "many", "--smoke"])
def test_a_dry_run_is_of_a_number_of_gpus(tmp_path: Path, count: str) -> None:
    assert _dry_run(tmp_path, count)[:2] == (2, "error: --dry-run needs a number of GPUs.\n")

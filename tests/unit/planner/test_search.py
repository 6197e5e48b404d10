"""Which layouts are found, which are rejected and why, and what is said of them."""

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vila_mc.commands.plan_cluster import main
from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, VilaError
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.plan import ALLOWANCE, plan_of
from vila_mc.planner.report import timeline
from vila_mc.planner.search import MOST_PIPELINE, TOO_FULL, TOO_LONG, candidates, search
from vila_mc.planner.step import quick_step_time, step_time
from vila_mc.topology.hardware import GPUS, Gpu

A100 = GPUS["a100-80g"]


@pytest.fixture(scope="module")
def recipe() -> RunConfig:
    """VILA-7B's second phase, which the defaults are, of few layers to be quick."""
    return load_run([], {"train.global_batch": "64", "model.language.layers": "8"})


def test_the_fastest_comes_first_and_all_fit(recipe: RunConfig) -> None:
    found = search(recipe, 8, A100, FITTED)
    seconds = [plan.time.total for plan in found.plans]
    assert seconds == sorted(seconds)
    assert all(plan.fits() for plan in found.plans)
    assert {plan.layout.world_size() for plan in found.plans} == {8}


def test_what_does_not_fit_is_counted_and_the_nearest_named(recipe: RunConfig) -> None:
    small = replace(A100, memory=ALLOWANCE + 2**30)
    found = search(recipe, 8, small, FITTED)
    assert found.plans == ()
    assert found.rejected[TOO_FULL] > 0
    assert re.search(r"tensor \d.* needs least: \d+ GiB", found.nearest)


def test_less_memory_rejects_more(recipe: RunConfig) -> None:
    small = replace(A100, memory=20 * 2**30)
    rejected = [search(recipe, 4, gpu, FITTED).rejected.get(TOO_FULL, 0) for gpu in (A100, small)]
    assert rejected[0] < rejected[1]


def test_pipelines_longer_than_any_published_are_counted_and_not_tried() -> None:
    layers = str(2 * MOST_PIPELINE)
    deep = load_run([], {"train.global_batch": "128", "model.language.layers": layers})
    rejected = Counter[str]()
    tried = {one.parallel.pipeline for one in candidates(deep, 2 * MOST_PIPELINE, A100, rejected)}
    assert max(tried) == MOST_PIPELINE
    assert rejected[TOO_LONG] == 1  # all GPUs in one pipeline


@pytest.mark.parametrize("layout", ["tensor=2", "pipeline=4,virtual=2", "tensor=2,pipeline=2"])
def test_the_quick_estimate_is_near_the_simulation(recipe: RunConfig, layout: str) -> None:
    plan = plan_of(with_layout(recipe, layout), 8, A100, FITTED, Known(images=4))
    quick = quick_step_time(plan.job, A100, FITTED)
    assert quick == pytest.approx(step_time(plan.job, A100, FITTED).total, rel=0.15)


def test_more_of_anything_good_is_faster(recipe: RunConfig) -> None:
    def seconds(text: str, world: int = 8, gpu: Gpu = A100, images: float = 1) -> float:
        return plan_of(
            with_layout(recipe, text), world, gpu, FITTED, Known(images=images)
        ).time.total

    assert seconds("tensor=1", 16) < seconds("tensor=1", 8)
    assert seconds("tensor=1", gpu=GPUS["h100-80g"]) < seconds("tensor=1")
    assert seconds("tensor=1") < seconds("tensor=1,recompute=full")
    assert seconds("tensor=1") < seconds("tensor=8")
    assert seconds("tensor=1", images=0) < seconds("tensor=1", images=20)
    slow = replace(A100, network=A100.network / 100)
    assert seconds("tensor=1", 16) < seconds("tensor=1", 16, slow)


@pytest.mark.parametrize("text", ["tensor", "tensor=0", "tensor=-2", "depth=3", "", "tensor=2,,"])
def test_a_layout_that_is_none(recipe: RunConfig, text: str) -> None:
    with pytest.raises(ConfigError, match="is no part of a layout"):
        with_layout(recipe, text)


def test_a_timeline_shows_every_rank(recipe: RunConfig) -> None:
    plan = plan_of(with_layout(recipe, "pipeline=4"), 8, A100, FITTED, Known(images=1))
    lines = timeline(plan.time.events, 4)
    assert len(lines) == 4
    assert [line.split("  ", 1)[1][0] for line in lines] == ["/", ".", ".", "."]
    assert lines[0].endswith("\\")


CASE = ["--gpus", "8", "--gpu", "a100-80g", "--train.global_batch", "64"]
CASE += ["--model.language.layers", "4"]


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"plan.{name}" for name in ("json", "html", "trace", "write")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    asked = [*CASE, "--price", "2", "--explain", "tensor=2,pipeline=2", *options]
    assert main([*asked, "--what-if", "--gpus 16", "--what-if", "--gpus=32", "--top", "3"]) == 0
    told = capsys.readouterr().out
    assert "100 steps of 64 rows of 4,096 positions" in told
    assert re.search(r"tensor 2 x pipeline 2 x data 2, micro-batch 1: fits", told)
    assert re.search(r"\(1\) +tp\d.*\n\(2\) +tp\d.*\n\(1\) --gpus 16\n\(2\) --gpus=32\n", told)
    told_as_values = json.loads(files["json"].read_text())
    best = told_as_values["layouts"][0]
    assert told_as_values["question"] | {"rows": ""} == {
        "title": "pretrain on 8 x A100 SXM 80 GB: 100 steps of 64 rows of 4,096 positions",
        "gpus": 8,
        "gpu": "a100-80g",
        "price": 2.0,
        "steps": 100,
        "are_steps_known": True,
        "rows": "",
    }
    assert told_as_values["explained"]["layout"]["tensor"] == 2
    assert [one["gpus"] for one in told_as_values["what_ifs"]] == [16, 32]
    assert told_as_values["rejected"]["the global batch does not divide"] > 0
    assert best["cost"] == pytest.approx(2 * best["gpu_hours"])
    parts = {name: held for name, held in best["memory_bytes_by_stage"][0].items() if name != "all"}
    assert best["memory_bytes_by_stage"][0]["all"] == pytest.approx(sum(parts.values()))
    events = json.loads(files["trace"].read_text())["traceEvents"]
    assert {one["ph"] for one in events} == {"M", "X"}
    page = files["html"].read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.lower().replace("charset", "").replace("http-equiv", "")
    again = load_run([files["write"]])
    assert again.parallel.tensor == best["layout"]["tensor"]
    assert again.train.micro_batch == best["micro_batch"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpu", "v100"], "--gpu is v100; it must be one of a100-40g"),
        (["--gpus", "0"], "--gpus is 0; it must be from 1"),
        (["--price", "-1"], "--price is -1.0; it must be 0 or greater"),
        (["--train.fp8.recipe", "delayed"], "an A100 SXM 80 GB computes no FP8"),
        (["--gpu", "h100-80g", "--train.fp8.recipe", "mxfp8"], "needs Blackwell"),
        (["--config", "preset:tiny"], "train.precision is fp32; the planner foretells bf16, fp16"),
        (["--what-if", "--train.precision fp32"], "train.precision is fp32"),
        (["--images", "29"], "a row of 4,096 positions has room for 28"),
        (["--phase", "/none"], "there is no recipe /none"),
        (["--explain", ""], "layout"),
        (["--what-if", "--trian.steps 3"], "--trian.steps is not an option"),
        (["--explain", "tensor=3"], "not a multiple of parallel.tensor 3"),
        (["--explain", "pipeline=3"], "8 ranks do not divide"),
        (["--explain", "micro_batch=3"], "64 is not a multiple of train.micro_batch x"),
        (["--explain", "pipeline=2,virtual=2,micro_batch=16"], "in multiples of"),
        (["--explain", "tensor=2,tensor=4"], "tensor is given twice"),
        (["--explain", "tensor=\u00b2"], "is no part of a layout"),
        (["--what-if", "--train.output 'a"], "whose quotes are not closed"),
        (["--what-if", "--json x"], "--json in --what-if is about what is printed"),
        (["--what-if", "--gpus", "16"], "'16' belongs to no option. Put quotes around"),
        (["--what-if"], "argument --what-if: expected one argument"),
        (["--what-if", "--gpus 8 --explain=tensor=2"], "--explain=tensor=2 in --what-if"),
    ],
)
def test_mistakes_are_told(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        main([*CASE, *options])
    assert capsys.readouterr().out == ""


def test_a_recipe_whose_own_layout_does_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CASE, "--train.micro_batch", "3"]) == 0
    assert "own layout: cannot be. train.global_batch 64 is not" in capsys.readouterr().out


def test_without_a_micro_batch_the_recipe_has_that_of_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = ["--config", "preset:tiny", "--train.precision", "bf16", "--gpus", "1"]
    assert main(tiny) == 0
    told = " ".join(capsys.readouterr().out.split())
    own = "own layout: tensor 1 x pipeline 1 x data 1, micro-batch "
    assert f"{own}8, which training chooses: " in told
    assert "Validation and restarts are not counted." in told
    assert main([*tiny, "--train.micro_batch", "2", "--explain", "tensor=1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{own}2: " in told
    config = load_run(["preset:tiny"], {"train.precision": "bf16"})
    assert plan_of(config, 2, A100, FITTED).job.micro_batch == 4


def test_a_plan_in_fp8_says_what_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "1", "--model.language.layers", "4", "--gpu", "h100-80g"]
    for recipe, said in (("current", True), ("none", False)):
        assert main([*options, "--train.fp8.recipe", recipe]) == 0
        assert ("counted with their copies in FP8" in capsys.readouterr().out) == said


def test_nothing_fits_and_all_that_is_asked_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, page = tmp_path / "plan.json", tmp_path / "plan.html"
    asked = ["--gpus", "1", "--gpu", "a100-40g", "--json", str(values), "--html", str(page)]
    asked += ["--explain", "micro_batch=2", "--what-if", "--gpu h200 --price 3"]
    phase = tmp_path / "short.yaml"
    phase.write_text("model: {language: {layers: 2}}\ntrain: {phase: sft}\n")
    assert main([*asked, "--phase", str(phase)]) == 1
    told = capsys.readouterr().out
    assert "no layout fits.\n" in told
    assert "tensor 1 x pipeline 1 x data 1, micro-batch 2: does not fit" in told
    assert re.search(r"pretrain +no layout fits +100\nsft +tp1 pp1 dp1", told)
    assert re.search(r"as asked +no layout fits +a100-40g\n\(1\) +\S.* +h200 ", told)
    assert "The what-ifs are of pretrain alone, not of all phases.\n" in told
    assert f"{page} is not written: no layout fits." in told.splitlines()
    assert not page.exists()
    answer = json.loads(values.read_text())
    assert answer["layouts"] == []
    assert answer["rejected"][TOO_FULL] > 0
    assert "needs least" in answer["nearest"]
    assert answer["explained"]["fits"] is False
    assert [one["layout"] is None for one in answer["phases"]] == [True, False]


SMALL = ["--gpus", "1", "--gpu", "h100-80g", "--model.language.layers", "2"]
SMALL += ["--train.global_batch", "2", "--top", "1"]


def test_cost_stands_wherever_hours_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "plan.json", tmp_path / "plan.html"
    phase = tmp_path / "second.yaml"
    phase.write_text("train: {phase: sft, steps: 50}\n")
    asked = [*SMALL, "--json", str(files[0]), "--html", str(files[1]), "--phase", str(phase)]
    assert main([*asked, "--train.steps", "70000", "--price", "0", "--what-if", "--price 3"]) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"(?:GPU-hours|days) +cost$", told, re.MULTILINE)) == 3
    answer = json.loads(files[0].read_text())
    assert [answer["layouts"][0]["cost"], answer["phases"][1]["layout"]["cost"]] == [0, 0]
    dearer = answer["what_ifs"][0]["layout"]
    assert dearer["cost"] == pytest.approx(3 * dearer["gpu_hours"])
    assert re.search(rf"^\(1\) .* {dearer['cost']:,.0f}$", told, re.MULTILINE)
    assert "<th>cost</th>" in files[1].read_text()
    assert "\nThe first microbatch: forward /" in told
    # what the command line says of a recipe holds for the other phase, too
    assert [one["steps"] for one in answer["phases"]] == [70_000, 70_000]
    assert "Given for every phase: " in told

    assert main([*asked, "--what-if", "--price 3"]) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r" cost$", told, re.MULTILINE)) == 1
    assert json.loads(files[0].read_text())["layouts"][0]["cost"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--write {0}", "--write is {0}, which is also an input"),
        ("--json {1} --phase {1}", "--json is {1}, which is also an input"),
        ("--trace {1} --what-if '--config {1}'", "--trace is {1}, which is also an input"),
        ("--html {1}.html --rehearsal {1}.html", "--html is {1}.html, which is also an input"),
        ("--json {2} --html {3}", "--json and --html are both {3}"),
        ("--html {1}", "--html is {1}, which is there and is no .html"),
    ],
)
def test_no_output_takes_the_place_of_an_input_or_another(
    options: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "my.yaml", tmp_path / "other.yaml", tmp_path / "x", tmp_path / "a/../x"]
    for file in (files[0], files[1], tmp_path / "other.yaml.html"):
        file.write_text("train: {global_batch: 64}\n")
    (tmp_path / "a").mkdir()
    with pytest.raises(VilaError, match=re.escape(told.format(*files))):
        main([*CASE, "--config", str(files[0]), *shlex.split(options.format(*files))])
    assert capsys.readouterr().out == ""
    assert files[0].read_text() == files[1].read_text() == "train: {global_batch: 64}\n"
    assert not files[2].exists()


def test_what_a_micro_batch_is_rejected_for_is_named(
    recipe: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(config: RunConfig) -> None:
        if config.train.micro_batch == 2:
            raise ConfigError(f"rows of {config.train.micro_batch} are odd. Take others.")

    monkeypatch.setattr(RunConfig, "_check_best", picky)
    rejected = Counter[str]()
    assert list(candidates(recipe, 8, A100, rejected))
    assert rejected["rows of are odd"] > 0
    monkeypatch.undo()
    without = Counter[str]()
    assert list(candidates(recipe, 8, A100, without))
    divides = "the global batch does not divide"
    assert rejected[divides] == without[divides]


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; from vila_mc.commands.plan_cluster import main; "
        f"main({CASE!r}); sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

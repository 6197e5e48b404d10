"""The command: every distinct rank of a layout in a process of its own, one verdict."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.rehearsal.small import small_run
from tests.support import forked, launching
from tests.support.launching import Finished
from tests.support.tiny_data import VOCABULARY, write_dataset
from vila_mc.config.load import run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.planner.constants import FITTED
from vila_mc.planner.rehearsed import planned_like, read_rehearsal
from vila_mc.topology.hardware import GPUS
from vila_mc.topology.layout import Layout


def start(
    run: RunConfig, folder: Path, *options: str, train: Callable[..., Finished] = forked.train
) -> Finished:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run_to_dict(run)), encoding="utf-8")
    return train("--config", recipe, "--rehearse", *options)


def test_every_coordinate_is_rehearsed_matched_and_fits(tmp_path: Path) -> None:
    run = small_run(parallel={"tensor": 2, "sequence": True, "pipeline": 2})
    file = tmp_path / "rehearsal.json"
    options = ("--as-ranks", "16", "--json", "--rehearsal", str(file))
    done = start(run, tmp_path, *options, train=launching.train)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(r["rank"], r["tensor"], r["pipeline"]) for r in found["ranks"]] == [
        (0, 0, 0),
        (1, 1, 0),
        (8, 0, 1),
        (9, 1, 1),
    ]
    assert found["matching"]["num_collectives"] > 50
    assert found["matching"]["differences"] == found["complaints"] == []
    # Each microbatch of a stage sends [s/tp, b, h] in bf16 to the next one.
    microbatches = found["microbatches"]
    assert microbatches == 2
    assert found["matching"]["num_messages"] == 2 * 2 * microbatches
    sends = [t for t in found["ranks"][0]["traffic_of_a_step"] if t["op"] == "send"]
    assert [(t["calls"], t["num_bytes"]) for t in sends] == [
        (microbatches, microbatches * 32 // 2 * 64 * 2)
    ]
    assert all(rank["room"]["fits"] for rank in found["ranks"])
    # The planner reads the same file, and has a plan of the same step.
    assert json.loads(file.read_text()) == found
    rehearsed = read_rehearsal(file)
    planned = planned_like(rehearsed, run, GPUS["h100-80g"], FITTED)
    assert planned.layout == rehearsed.layout == Layout(tensor=2, pipeline=2, data=4)
    kinds = {kind for rank in rehearsed.stages() for kind in rank.step.by_kind}
    assert {"weights", "gradients", "optimizer", "activations"} <= kinds


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    """Of one rank of real data, which meets no other."""
    tokenizer, prefix = write_dataset(tmp_path)
    run = small_run(
        model={"language": {"vocab_size": VOCABULARY}},
        data={"tokenizer": str(tokenizer), "blend": [{"path": str(prefix)}]},
    )
    options = ("--as-ranks", "1", "--gpu-memory", "0.5", "--first-steps", "3")
    done = start(run, tmp_path, *options)
    assert done.code == 1, done.err
    assert "stage 0 fits 0.5 GiB: NO" in done.out
    assert "peak of a step" in done.out
    assert "the fullest of the first 3 steps of data.blend (step " in done.out
    assert "nothing to match: the calls of 1 distinct rank" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--as-ranks", "0"], "--as-ranks is 0. Say how many ranks to play, 1 or more."),
        ([], "--as-ranks is not given."),
        (
            ["--as-ranks", "1", "--first-steps", "-1"],
            "--first-steps is -1; it must be 0 or greater.",
        ),
        (["--as-ranks", "1", "--gpu-memory", "0"], "--gpu-memory is 0; it must be"),
        (["--as-ranks", "1", "--gpu", "v100"], "--gpu is v100; it must be one of a100-40g"),
        (["--as-ranks", "1", "--rehearsal", "/"], "--rehearsal is /, a directory. Name a file."),
        (["--as-ranks", "3", "--parallel.tensor", "2"], "3 ranks do not divide"),
        (["--as-ranks", "1", "--train.layers", "transformer_engine"], "cannot be rehearsed"),
        (["--as-ranks", "1", "--train.fp8.recipe", "current"], "cannot be rehearsed"),
    ],
)
def test_refusals_are_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    done = start(small_run(), tmp_path, *options)
    assert done.code == 2, done.err
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""

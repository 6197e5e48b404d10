"""Every option of FP8 reaches the layers it is for, and copies of weights are never stale."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.emulated import Emulated

OPTIONS = "tests.te.options"
BOTH = ["vision", "language"]
LANGUAGE = [f"language.{layer}" for layer in range(4)]
VISION = ["vision.0", "vision.1"]
DELAYED = dict(recipe="TEDelayedScaling")
CURRENT = dict(recipe="Float8CurrentScaling", format="HYBRID")
BLOCKS = dict(recipe="Float8BlockScaling", format="E4M3")

CASES: list[tuple[dict[str, Any], list[str], dict[str, Any]]] = [
    (
        dict(recipe="delayed"),
        LANGUAGE,
        DELAYED
        | dict(margin=0, amax_history_len=1024, rows=1024)
        | dict(amax_compute_algo="max", format="HYBRID"),
    ),
    (
        dict(recipe="delayed", margin=2, amax_history=7)
        | dict(amax_algorithm="most_recent", format="e4m3"),
        LANGUAGE,
        DELAYED
        | dict(margin=2, amax_history_len=7, rows=7)
        | dict(amax_compute_algo="most_recent", format="E4M3"),
    ),
    (dict(recipe="current", parts=BOTH), [*LANGUAGE, *VISION], CURRENT),
    (
        dict(recipe="current", parts=BOTH, first_layers_bf16=1),
        [*LANGUAGE[1:], *VISION[1:]],
        CURRENT,
    ),
    (dict(recipe="current", first_layers_bf16=1, last_layers_bf16=2), LANGUAGE[1:2], CURRENT),
    (
        dict(recipe="blockwise", parts=["vision"], last_layers_bf16=1, format="e4m3"),
        VISION[:1],
        BLOCKS,
    ),
]


def test_options_reach_the_layers_they_are_for(h100: Emulated) -> None:
    found = h100(f"{OPTIONS}:in_layers", {}, [options for options, *_ in CASES])
    for (options, layers, facts), got in zip(CASES, found, strict=True):
        assert got == dict.fromkeys(layers, facts), options


def test_first_and_last_layers_are_those_of_the_whole_model(h100: Emulated) -> None:
    options = dict(recipe="current", first_layers_bf16=1, last_layers_bf16=1)
    parallel = dict(pipeline=2)
    ranks = h100.ranks(2, f"{OPTIONS}:in_layers", parallel, [options])
    assert [sorted(facts) for (facts,) in ranks] == [["language.1"], ["language.2"]]


@pytest.mark.parametrize("parts", [BOTH, ["vision"]], ids=str)
def test_training_sees_weights_of_now_in_each_microbatch(
    parts: list[str], seed_checkpoint: Path, h100: Emulated
) -> None:
    traces = h100(f"{OPTIONS}:with_caches", seed_checkpoint, dict(recipe="current", parts=parts))
    assert traces["kept"] == traces["anew"]
    assert traces["kept"][0] == traces["stale"][0]
    assert traces["kept"][1] != traces["stale"][1], "nothing would be noticed"


def test_what_answers_has_no_copies_that_could_be_stale(h100: Emulated) -> None:
    assert h100(f"{OPTIONS}:asked_of_a_run", dict(recipe="current", parts=BOTH)) == []

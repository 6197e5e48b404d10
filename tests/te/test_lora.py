"""Adapters beside layers of Transformer Engine, which have their norms within, learn as torch's."""

from pathlib import Path

import pytest

from tests.parity.compare import assert_every_rank_matches
from tests.parity.layout_trace import Trace
from tests.parity.lora_trace import PLAIN, Sections, traces
from tests.support.emulated import Emulated
from tests.support.ranks import run_ranks

TE = {"train": {"layers": "transformer_engine"}}
SEQUENCE: Sections = PLAIN | TE | {"parallel": dict(sequence=True)}


@pytest.fixture(scope="module")
def torch_layers(seed_checkpoint: Path) -> Trace:
    """One rank with torch's layers."""
    ((trace,),) = run_ranks(1, traces, seed_checkpoint, {}, [PLAIN])
    return trace


def test_they_learn_what_they_learn_with_torch(
    seed_checkpoint: Path, torch_layers: Trace, h100: Emulated
) -> None:
    function, variants = "tests.parity.lora_trace:traces", [PLAIN | TE, SEQUENCE]
    by_rank = h100.ranks(2, function, seed_checkpoint, dict(tensor=2), variants)
    for index, variant in enumerate(variants):
        assert_every_rank_matches([each[index] for each in by_rank], torch_layers, str(variant))


def test_beside_layers_in_fp8_they_learn_near_bf16(seed_checkpoint: Path, h100: Emulated) -> None:
    of_bf16 = {"layers": "transformer_engine", "precision": "bf16"}
    recipes = [{}, {"recipe": "delayed"}, {"recipe": "current", "parts": ["vision", "language"]}]
    variants = [PLAIN | {"train": of_bf16 | {"fp8": options}} for options in recipes]
    bf16, *in_fp8 = h100("tests.parity.lora_trace:traces", seed_checkpoint, {}, variants)
    for trace in in_fp8:
        assert trace != bf16, "nothing was computed in FP8"
        assert [loss for loss, _ in trace] == pytest.approx([loss for loss, _ in bf16], rel=1e-3)

"""The recipes in examples/: what the paper says of each phase, and layouts that can be."""

import dataclasses
import math
from pathlib import Path

import pytest

from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.topology.shapes import model_parameters

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = ["align_7b", "pretrain_7b", "sft_7b", "pretrain_13b"]
# arXiv 2312.07533, sections 3.1 and 4: rate, rows of a step, positions of a row, what learns.
PAPER = {
    "align": (1e-3, 256, 2048, ("connector",)),
    "pretrain": (5e-5, 1024, 4096, ("connector", "language")),
    "sft": (2e-5, 128, 4096, ("connector", "language")),
}
BILLIONS = {"7b": 6.74 + 0.30 + 0.03, "13b": 13.02 + 0.30 + 0.05}
"""Weights: Llama-2 (arXiv 2307.09288), CLIP ViT-L/14 and the connector."""


def recipe(name: str, *more: str) -> RunConfig:
    return load_run([EXAMPLES / f"{file}.yaml" for file in (name, *more)])


@pytest.mark.parametrize("name", RECIPES)
def test_a_phase_is_as_the_paper_has_it(name: str) -> None:
    run = recipe(name)
    phase, _, size = name.partition("_")
    train = run.train
    assert train.phase == phase
    assert PAPER[phase] == (
        *(run.optimizer.lr, train.global_batch, run.data.sequence_length, train.trainable),
    )
    assert (run.optimizer.decay, run.optimizer.warmup_fraction) == ("cosine", 0.03)
    assert (run.optimizer.weight_decay, train.precision) == (0.0, "bf16")
    assert train.epochs == 1 or train.steps * train.global_batch == pytest.approx(50e6, rel=1e-4)
    weights = sum(math.prod(weight.shape) for weight in model_parameters(run.model))
    assert weights / 1e9 == pytest.approx(BILLIONS[size], rel=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts_on_eight_gpus_and_small(name: str) -> None:
    recipe(name).check_world(8)
    recipe(name).check_world(64)
    small = recipe(name, "smoke")
    small.check_world(8)
    assert small.parallel == recipe(name).parallel
    assert small.train.precision == recipe(name).train.precision
    assert small.train.epochs is None


def test_fp8_is_laid_over_the_recipe_of_an_h100_and_small() -> None:
    fp8 = "pretrain_7b_h100_fp8"
    run, plain = recipe("pretrain_7b", fp8), recipe("pretrain_7b")
    run.check_world(8)
    assert run.train.fp8.recipe == "current"
    assert run.train.layers == "transformer_engine"
    assert (plain.train.recompute, run.train.recompute) == ("none", "full")
    same = dict(layers=plain.train.layers, fp8=plain.train.fp8, recompute=plain.train.recompute)
    default = dataclasses.replace(run.train, **same)
    assert dataclasses.replace(run, train=default) == plain
    small = recipe("pretrain_7b", "smoke", fp8)
    assert small.train.fp8 == run.train.fp8


def test_the_phases_of_a_size_are_of_one_model() -> None:
    model = recipe("pretrain_7b").model
    assert recipe("align_7b").model == recipe("sft_7b").model == model
    language = dataclasses.replace(recipe("pretrain_13b").model.language, **_llama_7b())
    assert dataclasses.replace(recipe("pretrain_13b").model, language=language) == model


def _llama_7b() -> dict[str, int]:
    return dict(layers=32, width=4096, ffn=11008, heads=32, kv_heads=32)

"""FLOPs, bytes and weights against figures computed by hand, and against what a model has."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from vila_mc.config.load import load_run
from vila_mc.config.lora import is_adapter
from vila_mc.config.trainable import learning_pieces, piece_of
from vila_mc.planner.clock import Clock
from vila_mc.planner.constants import FITTED
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.held import rank_gathered, rank_learnt, rank_weights
from vila_mc.planner.job import Decoder, Engine, Job, Learns, Share, Stage, Tower
from vila_mc.planner.memory import layer_activations, peak_memory, rank_memory, under_way
from vila_mc.planner.passes import chunk_passes
from vila_mc.planner.work import decoder_layer, head, tower_layer
from vila_mc.topology.hardware import GPUS
from vila_mc.topology.layout import Layout
from vila_mc.topology.shapes import stage_parameters
from vila_mc.topology.stage_plan import plan_stages

LLAMA = Decoder(
    layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn=11008, vocab=32000
)
CLIP = Tower(layers=23, width=1024, heads=16, ffn=4096, positions=577, visual_tokens=144)
JOB = Job(
    decoder=LLAMA, tower=None, length=4096, attended=4096, rows=8, micro_batch=1, learns=Learns()
)


def test_a_layer_by_hand() -> None:
    job = replace(JOB, share=Share(tensor=2), micro_batch=2)
    operators = {one.name: one for one in decoder_layer(job).operators}
    rows = 2 * 4096
    assert operators["query, key, value"].flops == 2 * rows * 4096 * 3 * 4096 / 2
    assert operators["feed-forward in"].flops == 2 * rows * 4096 * 2 * 11008 / 2
    assert operators["attention"].flops == 4 * rows * 2048 * 4096 / 2
    assert decoder_layer(job).summed == 2 * rows * 4096
    assert head(job)[0].flops == 2 * rows * 4096 * 32000 / 2
    seen = replace(job, tower=CLIP, images=3)
    assert tower_layer(seen, CLIP).summed == 2 * (2 * 3 * 577) * 1024


_FP8 = {"train.fp8.recipe": "current", "model.language.layers": "8"}


@pytest.mark.parametrize(
    ("options", "language", "vision"),
    [
        ({}, (8, 0, 0), (0, 0)),
        ({"first_layers_bf16": "2", "last_layers_bf16": "3"}, (3, 0, 0), (0, 0)),
        ({"parts": "[vision]"}, (0, 0, 0), (0, 23)),
        ({"parts": "[vision, language]", "first_layers_bf16": "2"}, (6, 0, 0), (0, 21)),
        ({"primary_weights": "true"}, (8, 0, 0), (0, 0)),
    ],
)
def test_time_and_memory_of_fp8_are_of_the_layers_that_are_in_it(
    options: dict[str, str], language: tuple[int, int, int], vision: tuple[int, int]
) -> None:
    of_fp8 = {f"train.fp8.{name}": value for name, value in options.items()}
    config = load_run([], {**_FP8, **of_fp8})
    layout, gpu = Layout.of(config.parallel, 8), GPUS["h100-80g"]
    job = job_of(config, layout)
    (stage,) = job.stages
    assert (stage.in_fp8, job.tower_in_fp8) == (language, vision)
    bf16 = job_of(load_run([], {**_FP8, "train.fp8.recipe": "none"}), layout)
    matrices = 4 * 4096**2 + 3 * 4096 * 11008
    primary = config.train.fp8.primary_weights
    copies = 0 if primary else 2 * language[0] * matrices
    copies += vision[1] * (4 * 1024**2 + 2 * 1024 * 4096)  # frozen: for the forward pass alone
    more = rank_memory(job, 0, FITTED).weights - rank_memory(bf16, 0, FITTED).weights
    assert more == copies
    saved = rank_gathered(bf16, 0) - rank_gathered(job, 0)
    assert saved == (8 * matrices if primary else 0)

    def one(of: Job, has_layers: int, has_vision: bool) -> float:
        chunk = replace(stage, layers=has_layers, learning=None, backward=None, in_fp8=None)
        chunk = replace(chunk, has_vision=has_vision, has_head=False)
        passes = chunk_passes(of, chunk, Clock(gpu, of, FITTED))
        return passes.forward + passes.backward

    passes = chunk_passes(job, stage, Clock(gpu, job, FITTED))
    plain = chunk_passes(bf16, bf16.stages[0], Clock(gpu, bf16, FITTED))
    faster = plain.forward + plain.backward - passes.forward - passes.backward
    eight = replace(bf16, arithmetic="fp8")
    a_layer = one(bf16, 1, False) - one(eight, 1, False)
    a_tower = one(bf16, 0, True) - one(replace(eight, tower_in_fp8=(0, 23)), 0, True)
    assert a_layer > 0
    assert a_tower > 0
    assert faster == pytest.approx(language[0] * a_layer + vision[1] / 23 * a_tower)


@pytest.mark.parametrize(
    ("trainable", "expected", "copies"),
    [
        ("['language.layers[-4:]']", (4, 0, 2), 2 * 4 + 2),
        ("['connector', 'language.layers[-4:]']", (4, 2, 0), 2 * 6),
    ],
)
def test_layers_in_fp8_are_told_apart_by_their_passes(
    trainable: str, expected: tuple[int, int, int], copies: int
) -> None:
    options = {"train.fp8.first_layers_bf16": "2", "train.trainable": trainable}
    config = load_run([], {**_FP8, **options})
    (stage,) = job_of(config, Layout.of(config.parallel, 8)).stages
    assert stage.in_fp8 == expected
    assert stage.fp8_copies == copies * (4 * 4096**2 + 3 * 4096 * 11008)


def test_primary_weights_are_gathered_in_fewer_bytes_but_for_mxfp8() -> None:
    def gathered(**fp8: str) -> float:
        options = {f"train.fp8.{name}": value for name, value in fp8.items()}
        config = load_run([], {"model.language.layers": "8", **options})
        return rank_gathered(job_of(config, Layout.of(config.parallel, 8)), 0)

    assert gathered(recipe="mxfp8", primary_weights="true") == gathered()
    assert gathered(recipe="blockwise", primary_weights="true") < gathered()


def test_unfused_attention_computes_what_is_masked() -> None:
    unfused = replace(JOB, engine=Engine(attention="unfused"))
    flash, whole = (
        next(one for one in decoder_layer(job).operators if one.kind == "attention")
        for job in (JOB, unfused)
    )
    assert whole.flops == 2 * flash.flops


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"parallel.tensor": "2", "parallel.sequence": "true", "parallel.pipeline": "2"},
        {"parallel.pipeline": "2", "parallel.virtual": "2"},
        {"parallel.pipeline": "2", "parallel.vision_placement": "dedicated"},
    ],
)
@pytest.mark.parametrize(
    "trainable", ["[connector]", "[connector, language]", "['vision.layers[-4:]', language.head]"]
)
def test_held_weights_are_those_of_the_shapes(parallel: dict[str, str], trainable: str) -> None:
    config = load_run([], {**parallel, "train.trainable": trainable})
    layout = Layout.of(config.parallel, 8)
    job = job_of(config, layout)
    plans = plan_stages(config.model, config.parallel)
    for rank in range(layout.pipeline):
        mine = [
            parameter
            for plan in plans[rank :: layout.pipeline]
            for parameter in stage_parameters(config.model, plan)
        ]
        sizes = {one.name: prod(one.local_shape(layout.tensor)) for one in mine}
        assert rank_weights(job, rank) == sum(sizes.values())
        learning = learning_pieces(config.train.trainable, config.model)
        learnt = [size for name, size in sizes.items() if piece_of(name) in learning]
        assert rank_learnt(job, rank) == sum(learnt)


def test_memory_by_hand() -> None:
    # arXiv 2205.05198 without scores: 2 bytes of 4 h for norms and products behind them, 3 h + h
    # around attention, 3 f in the gated feed-forward layer; 4 bytes a head for its softmax.
    per_position = 2 * (4 * 4096 + 4 * 4096 + 3 * 11008) + 4 * 32
    assert layer_activations(JOB, True) == 4096 * per_position
    assert layer_activations(JOB, False) == 4096 * (2 * (2 * 4096 + 4 * 4096 + 2 * 11008) + 4 * 32)
    stage = Stage(
        layers=16, has_vision=False, has_embedding=False, has_head=False, weights=1000, learnt=400
    )
    last = replace(stage, has_head=False)
    job = replace(
        JOB, rows=64, share=Share(pipeline=2, data=4), stages=(stage, last), recompute="full"
    )
    held = rank_memory(job, 0, FITTED)
    assert (held.weights, held.gradients, held.optimizer) == (2000, 1600, 12 * 400 / 4)
    assert held.activations == 2 * 16 * 4096 * 2 * 4096  # two microbatches under way
    passing = layer_activations(JOB, True) + 4096 * 2 * 4 * 11008  # and its gradients
    assert held.passing == passing + 4096 * 2 * 4096  # and what the next stage sends back


def test_the_rehearsals_first_and_last_stage_of_the_7b() -> None:
    # benchmarks/results/rehearsal.md: GiB that real tensors of a step would take, counted.
    recipe = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
    config = load_run([recipe], {"train.recompute": "none", "data.blend": "[{path: none}]"})
    job = job_of(config, Layout.of(config.parallel, 128))
    for rank, counted in ((0, 18.938), (1, 14.547)):
        assert rank_memory(job, rank, FITTED).total() / 2**30 == pytest.approx(counted, rel=0.01)


def test_a_stage_of_vision_alone_peaks_in_the_connectors_backward_pass() -> None:
    # A rehearsal of the 7B on 128, tensor 4 and vision dedicated: benchmarks/planner_memory.py.
    recipe = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
    overrides = {"parallel.tensor": "4", "parallel.vision_placement": "dedicated"}
    config = load_run([recipe], {**overrides, "data.blend": "[{path: none}]"})
    job = job_of(config, Layout.of(config.parallel, 128))
    assert rank_memory(job, 0, FITTED).total() / 2**30 == pytest.approx(0.926, rel=0.03)


def test_a_tower_that_learns_keeps_its_activation_too() -> None:
    # A rehearsal of the 7B on 128 with every part trained: benchmarks/planner_memory.py.
    recipe = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
    overrides = {"train.recompute": "none", "data.blend": "[{path: none}]"}
    overrides |= {"train.trainable": "[vision, connector, language]"}
    config = load_run([recipe], overrides)
    job = job_of(config, Layout.of(config.parallel, 128))
    assert rank_memory(job, 0, FITTED).total() / 2**30 == pytest.approx(36.67, rel=0.03)


def test_layers_below_all_that_learns_take_no_time_backward() -> None:
    stage = Stage(layers=4, has_vision=False, has_embedding=False, has_head=False)
    clock = Clock(GPUS["h100-80g"], JOB, FITTED)

    def backward(learning: int, passed: int) -> float:
        frozen = replace(stage, learning=learning, backward=passed)
        return chunk_passes(JOB, frozen, clock).backward

    assert backward(0, 0) == 0
    assert 0 < backward(0, 4) < backward(2, 4) < backward(4, 4)
    assert backward(2, 2) == pytest.approx(backward(4, 4) / 2)


def test_microbatches_under_way() -> None:
    job = replace(JOB, rows=64, share=Share(pipeline=4))
    assert [under_way(job, rank, 0) for rank in range(4)] == [4, 3, 2, 1]
    virtual = replace(job, share=Share(pipeline=2, virtual=2))
    # Rank 0 runs (2 - 0 - 1) * 2 + (2 - 1) * 2 = 4 ahead and one more: chunk 0 thrice at most.
    assert [under_way(virtual, 0, chunk) for chunk in range(2)] == [3, 2]
    assert [under_way(virtual, 1, chunk) for chunk in range(2)] == [2, 1]
    assert under_way(replace(job, rows=2), 0, 0) == 2


@pytest.mark.parametrize(
    "share", [Share(pipeline=4), Share(pipeline=4, virtual=2), Share(pipeline=32)]
)
def test_the_fullest_rank_is_the_fullest_of_all(share: Share) -> None:
    job = replace(JOB, rows=64, share=share)
    ranks = [rank_memory(job, rank, FITTED).total() for rank in range(share.pipeline)]
    assert peak_memory(job, FITTED).total() == max(ranks)


def test_adapters_are_held_and_learn() -> None:
    config = load_run([], {"lora.rank": "16", "train.trainable": "[]"})
    layout = Layout.of(config.parallel, 1)
    job = job_of(config, layout)
    (plan,) = plan_stages(config.model, config.parallel)
    sizes = {one.name: prod(one.shape) for one in stage_parameters(config.model, plan, config.lora)}
    adapters = sum(size for name, size in sizes.items() if is_adapter(name))
    assert rank_weights(job, 0) == sum(sizes.values())
    assert rank_learnt(job, 0) == adapters
    (stage,) = job.stages
    assert (job.learning_layers(stage), job.backward_layers(stage)) == (0, 32)


def test_nothing_goes_back_below_what_learns() -> None:
    config = load_run([], {"train.trainable": "['language.layers[16:]']"})
    job = job_of(config, Layout.of(config.parallel, 1))
    (stage,) = job.stages
    assert (job.learning_layers(stage), job.backward_layers(stage)) == (16, 16)
    assert job.learning_tower() == 0
    lower = load_run([], {"train.trainable": "['vision.layers[-4:]', 'language.layers[:2]']"})
    job = job_of(lower, Layout.of(lower.parallel, 1))
    (stage,) = job.stages
    assert (job.learning_layers(stage), job.backward_layers(stage)) == (2, 32)
    assert job.learning_tower() == 4


@pytest.mark.parametrize(("kind", "counted"), [("qformer", 68.06), ("mlp2x_gelu", 64.83)])
def test_what_a_connector_keeps_is_held(kind: str, counted: float) -> None:
    # Rehearsals of the 7B on one rank of eight: benchmarks/planner_memory.py.
    recipe = Path(__file__).parents[3] / "examples/pretrain_7b.yaml"
    alone = {"parallel.tensor": "1", "parallel.sequence": "false", "parallel.pipeline": "1"}
    overrides = {**alone, "train.recompute": "none", "data.blend": "[{path: none}]"}
    config = load_run([recipe], {**overrides, "model.connector.kind": kind})
    job = job_of(config, Layout.of(config.parallel, 8))
    assert rank_memory(job, 0, FITTED).total() / 2**30 == pytest.approx(counted, rel=0.01)

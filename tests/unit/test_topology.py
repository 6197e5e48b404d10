"""Placement as arithmetic: ranks and coordinates, and which stage holds which part."""

import itertools

import pytest

from vila_mc.config.model import LanguageConfig, ModelConfig
from vila_mc.config.parallel import ParallelConfig, VisionPlacement
from vila_mc.errors import ConfigError
from vila_mc.topology.layout import Coordinates, Layout
from vila_mc.topology.stage_plan import (
    StagePlan,
    megatron_layout,
    plan_stages,
    stages_of_rank,
)

DEGREES = list(itertools.product((1, 2, 3, 8), (1, 2, 4), (1, 2, 5)))
PLACEMENTS: tuple[VisionPlacement, ...] = ("shared", "dedicated")
PLANS = [
    (layers, pipeline, virtual, placement)
    for layers in (8, 9, 23, 32, 40)
    for pipeline in (1, 2, 3, 4)
    for virtual in (1, 2)
    for placement in PLACEMENTS
    if pipeline > 1 or (virtual == 1 and placement == "shared")
]


def plan(
    layers: int, pipeline: int, virtual: int = 1, placement: VisionPlacement = "shared"
) -> tuple[StagePlan, ...]:
    return plan_stages(
        ModelConfig(language=LanguageConfig(layers=layers)),
        ParallelConfig(pipeline=pipeline, virtual=virtual, vision_placement=placement),
    )


@pytest.mark.parametrize(("tensor", "pipeline", "data"), DEGREES)
def test_rank_and_coordinates_are_inverse(tensor: int, pipeline: int, data: int) -> None:
    layout = Layout(tensor=tensor, pipeline=pipeline, data=data)
    ranks = range(layout.world_size())
    places = [layout.coordinates(rank) for rank in ranks]
    assert len(set(places)) == tensor * pipeline * data
    assert [layout.rank(place) for place in places] == list(ranks)
    for place in places:
        assert 0 <= place.tensor < tensor
        assert 0 <= place.pipeline < pipeline
        assert 0 <= place.data < data


def test_tensor_neighbours_are_adjacent_and_pipeline_stages_farthest_apart() -> None:
    layout = Layout(tensor=2, pipeline=2, data=3)
    assert [layout.coordinates(rank).tensor for rank in range(4)] == [0, 1, 0, 1]
    assert layout.coordinates(2) == Coordinates(tensor=0, data=1, pipeline=0)
    assert layout.coordinates(6) == Coordinates(tensor=0, data=0, pipeline=1)


def test_layout_takes_data_parallel_ranks_from_the_world() -> None:
    parallel = ParallelConfig(tensor=2, pipeline=2, virtual=2)
    layout = Layout.of(parallel, 12)
    assert layout == Layout(tensor=2, pipeline=2, data=3, virtual=2)
    assert str(layout) == "tensor 2 x pipeline 2 (2 virtual stages each) x data 3"
    with pytest.raises(ConfigError, match="10 ranks do not divide"):
        Layout.of(parallel, 10)


@pytest.mark.parametrize(("layers", "pipeline", "virtual", "placement"), PLANS)
def test_every_part_lives_on_exactly_one_stage(
    layers: int, pipeline: int, virtual: int, placement: VisionPlacement
) -> None:
    plans = plan(layers, pipeline, virtual, placement)
    assert len(plans) == pipeline * virtual
    assert list(itertools.chain.from_iterable(stage.layers for stage in plans)) == [*range(layers)]
    assert [stage.has_vision for stage in plans] == [True] + [False] * (len(plans) - 1)
    assert [stage.has_embedding for stage in plans] == [True] + [False] * (len(plans) - 1)
    assert [stage.has_head for stage in plans] == [False] * (len(plans) - 1) + [True]


@pytest.mark.parametrize(("layers", "pipeline", "virtual", "placement"), PLANS)
def test_layers_are_spread_evenly(
    layers: int, pipeline: int, virtual: int, placement: VisionPlacement
) -> None:
    plans = plan(layers, pipeline, virtual, placement)
    counts = [len(stage.layers) for stage in plans]
    if placement == "dedicated":
        assert counts.pop(0) == 0
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("layers", "pipeline", "virtual", "placement"), PLANS)
def test_the_ranks_share_the_stages_out(
    layers: int, pipeline: int, virtual: int, placement: VisionPlacement
) -> None:
    plans = plan(layers, pipeline, virtual, placement)
    held = [stages_of_rank(plans, rank, pipeline) for rank in range(pipeline)]
    assert all(len(stages) == virtual for stages in held)
    for chunk, stage in enumerate(plans):
        assert held[chunk % pipeline][chunk // pipeline] == stage


@pytest.mark.parametrize(
    ("arguments", "layout"),
    [
        ((2, 1), "EttL"),
        ((4, 2), "Ett|ttL"),
        ((5, 3), "Et|tt|ttL"),
        ((6, 4), "Et|tt|tt|tL"),
        ((4, 2, 1, "dedicated"), "E|ttttL"),
        ((5, 3, 1, "dedicated"), "E|tt|tttL"),
        ((4, 2, 2), "Et|t|t|tL"),
        ((3, 2, 2, "dedicated"), "E|t|t|tL"),
    ],
)
def test_layout_in_megatrons_language(arguments: tuple[int, ...], layout: str) -> None:
    assert megatron_layout(plan(*arguments)) == layout


@pytest.mark.parametrize("arguments", [(3, 4), (7, 4, 2), (2, 4, 1, "dedicated")])
def test_more_stages_than_layers_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"is less than the \d stages .* Use fewer stages"):
        plan(*arguments)


def test_what_a_stage_reads() -> None:
    first, middle, last = plan(3, 3)
    assert [stage.needs_images() for stage in (first, middle, last)] == [True, False, False]


@pytest.mark.parametrize(
    ("placement", "counts", "told"),
    [
        ("shared", (1, 2, 2), "Et|tt|ttL"),
        ("shared", (3, 1, 1), "Ettt|t|tL"),
        ("dedicated", (0, 4, 1), "E|tttt|tL"),
        ("shared", (2, 3), r"is \[2, 3\], but there are 3 stages"),
        ("shared", (2, 2, 2), "which are 6 layers, and model.language.layers is 5"),
        ("shared", (0, 3, 2), "Each stage needs a layer"),
        ("shared", (4, 2, -1), "Each stage needs a layer"),
        ("dedicated", (1, 2, 2), "dedicated, which has none"),
    ],
)
def test_layers_of_each_stage_as_given(
    placement: VisionPlacement, counts: tuple[int, ...], told: str
) -> None:
    parallel = ParallelConfig(pipeline=3, vision_placement=placement, layers_per_stage=counts)
    model = ModelConfig(language=LanguageConfig(layers=5))
    if "t|" in told or "|t" in told:
        assert megatron_layout(plan_stages(model, parallel)) == told
        return
    with pytest.raises(ConfigError, match=told):
        plan_stages(model, parallel)

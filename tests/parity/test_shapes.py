"""The arithmetic of parameters against models that are really built: every rank of every layout.

All ranks are built one after the other in this process, on a backend that sends nothing, with
weights that take no memory.
"""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.connectors import CASES, options_of
from tests.support.tiny import tiny_run
from vila_mc.checkpoint.places import Place, empty_objects, model_places
from vila_mc.checkpoint.state import weights_state
from vila_mc.checkpoint.whole import weightless_model
from vila_mc.config.families import LANGUAGE_FAMILIES, VISION_FAMILIES
from vila_mc.config.run import RunConfig
from vila_mc.convert.formats.hf_vila import FORMAT as HF_VILA
from vila_mc.convert.names import tables
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.cpu_backend import undo_cpu_backend, use_cpu_backend
from vila_mc.topology.layout import Layout
from vila_mc.topology.shapes import model_parameters, stage_parameters
from vila_mc.topology.stage_plan import StagePlan, plan_stages, stages_of_rank

LAYOUTS = [
    dict(),
    dict(tensor=2),
    dict(tensor=2, sequence=True, connector_placement="split"),
    dict(pipeline=2),
    dict(pipeline=3, vision_placement="dedicated"),
    dict(tensor=2, pipeline=2, virtual=2),
    dict(tensor=2, pipeline=2, virtual=2, vision_placement="dedicated"),
]
FAMILIES = list(itertools.product(VISION_FAMILIES, LANGUAGE_FAMILIES))
MODELS = [  # every family, connector and either kind of embedding, at least once each
    dict(
        vision=FAMILIES[index % len(FAMILIES)][0],
        language=FAMILIES[index % len(FAMILIES)][1],
        connector=tuple(CASES)[index % len(CASES)],
        tied_embeddings=index % 2 == 1,
        head_width=24 if index % 3 == 0 else None,
        select_layer=-1 - index % 3,
    )
    for index in range(max(len(FAMILIES), len(CASES)))
]


def _config(model: dict[str, Any], **parallel: Any) -> RunConfig:
    options = dict(model)
    vision, connector = options.pop("vision"), options.pop("connector")
    language = dict(family=options.pop("language"), layers=5, width=64, ffn=96, heads=4, kv_heads=2)
    lora, select_layer = options.pop("lora", {}), options.pop("select_layer")
    return tiny_run(
        lora=lora,
        train={"trainable": ["connector"]},
        model={
            "vision": dict(
                family=vision,
                image_size=28,
                patch_size=7,
                width=32,
                layers=3,
                select_layer=select_layer,
                heads=4,
                ffn=64,
            ),
            "connector": options_of(connector),
            "language": language | dict(vocab_size=131, max_positions=64) | options,
        },
        parallel=parallel,
    )


@contextmanager
def _pretended_rank(
    config: RunConfig, layout: Layout, rank: int
) -> Iterator[ProcessGroupCollection]:
    use_cpu_backend()
    world = layout.world_size()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
            create_gloo_process_groups=False,
        )
        yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        undo_cpu_backend()


def _over_all_layers(name: str, plan: StagePlan) -> str:
    """The name of a language layer counted over all stages, from that counted in this stage."""
    return re.sub(
        r"(?<=language\.decoder\.layers\.)\d+", lambda m: str(plan.layers[int(m[0])]), name
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_every_rank_holds_what_the_arithmetic_says(
    model: dict[str, Any], layout: dict[str, Any]
) -> None:
    config = _config(model, **layout)
    grid = Layout.of(config.parallel, config.parallel.model_ranks())
    plans = plan_stages(config.model, config.parallel)
    for rank in range(grid.world_size()):
        at = grid.coordinates(rank)
        with _pretended_rank(config, grid, rank) as groups:
            for index, plan in enumerate(stages_of_rank(plans, at.pipeline, grid.pipeline)):
                virtual = index if grid.virtual > 1 else None
                with torch.device("meta"):
                    stage = VilaModel(config, plan, groups, virtual)
                built = {_over_all_layers(n, plan): w for n, w in stage.named_parameters()}
                planned = stage_parameters(
                    config.model,
                    plan,
                    config.lora,
                    splits_connector=config.splits_connector(),
                )
                assert [each.name for each in planned] == list(built)
                for each in planned:
                    weight = built[each.name]
                    assert tuple(weight.shape) == each.local_shape(grid.tensor), each
                    is_split = getattr(weight, "tensor_model_parallel", False)
                    assert is_split == (each.split_axis is not None), each
                    assert not is_split or weight.partition_dim == each.split_axis, each
                    assert getattr(weight, "shared", False) == each.is_copy, each


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_stages_together_are_the_whole_model(model: dict[str, Any]) -> None:
    config = _config(model, pipeline=3, vision_placement="dedicated")
    stages = [stage_parameters(config.model, p) for p in plan_stages(config.model, config.parallel)]
    parts = [each for stage in stages for each in stage if not each.is_copy]
    whole = model_parameters(config.model)
    assert sorted(parts, key=lambda each: each.name) == sorted(whole, key=lambda each: each.name)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_hugging_face_has_a_row_of_that_shape_for_each(model: dict[str, Any]) -> None:
    config = _config(model)
    rows: dict[str, tuple[int, ...]] = {}
    for table in tables(config.model, HF_VILA.naming):
        rows |= table.our_shapes()
    assert rows == {each.name: each.shape for each in model_parameters(config.model)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_a_checkpoint_keeps_them_where_megatron_core_says(model: dict[str, Any]) -> None:
    config = _config(model)
    with weightless_model(config) as built:
        (state,) = weights_state([built]).values()
        shapes = {name: tuple(weight.shape) for name, weight in built.named_parameters()}
        places: dict[str, list[Place]] = {}
        objects = {}
        for name, entry in state.items():
            pieces = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
            entries = pieces if isinstance(pieces, (dict, list)) else [pieces]
            for shard in nested_values(entries):
                if isinstance(shard, ShardedTensor):
                    places.setdefault(name, []).append(_place(shard))
                elif isinstance(shard, ShardedObject):
                    objects[shard.unique_key] = shard.data
    expected = model_places(config.model, config.lora)
    assert expected == {n: (shapes[n], where) for n, where in places.items()}
    assert list(expected) == list(places), "the order in which they are written"
    assert dict.fromkeys(empty_objects(config.model)) == objects


def _place(shard: Any) -> Place:
    ones = (1,) * shard.prepend_axis_num
    return Place(shard.key, tuple(shard.global_offset), (*ones, *shard.local_shape))


ADAPTED = [
    dict(rank=3, vision_targets=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    dict(rank=2, targets=["v_proj", "gate_proj"], vision_targets=["k_proj"]),
]


@pytest.mark.parametrize("lora", ADAPTED, ids=["everywhere", "somewhere"])
def test_adapters(lora: dict[str, Any]) -> None:
    model = {**MODELS[0], "lora": lora}
    for layout in (dict(tensor=2, sequence=True), dict(tensor=2, pipeline=2, virtual=2)):
        test_every_rank_holds_what_the_arithmetic_says(model, layout)
    test_a_checkpoint_keeps_them_where_megatron_core_says(model)

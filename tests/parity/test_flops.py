"""The FLOPs that are counted are those that torch's counter sees in a step of the real model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.connectors import options_of
from tests.support.tiny import QWEN3, tiny_microbatches, tiny_run
from vila_mc.config.connectors import CONNECTORS
from vila_mc.config.run import RunConfig
from vila_mc.flow import Microbatch
from vila_mc.kernels import reference
from vila_mc.model.build import build_stages
from vila_mc.model.connectors import mlp_downsample
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.topology.flops import pairs_of, step_flops
from vila_mc.train.step import Trainer

ALL = ["vision", "connector", "language"]
CASES_OF_RUNS: dict[str, dict[str, Any]] = {
    "all learns": {"train": {"trainable": ALL}},
    "align": {"train": {"trainable": ["connector"]}},
    "language": {"train": {"trainable": ["language"]}},
    "vision": {"train": {"trainable": ["vision"]}},
    "upper layers": {"train": {"trainable": ["language.layers[2:]", "language.head"]}},
    "tower's last": {"train": {"trainable": ["vision.layers[-1:]", "language.norm"]}},
    "patches and table": {"train": {"trainable": ["vision.embedding", "language.embedding"]}},
    "adapters": {"train": {"trainable": []}, "lora": {"rank": 3}},
    "adapters of some": {
        "train": {"trainable": []},
        "lora": {"rank": 3, "targets": ["down_proj"], "vision_targets": []},
    },
    "adapters of the tower": {
        "train": {"trainable": ["connector"]},
        "lora": {"rank": 2, "targets": ["k_proj", "o_proj"], "vision_targets": ["fc1", "q_proj"]},
    },
    "qwen3": {"model": QWEN3, "train": {"trainable": ALL}},
    **{
        f"{kind}, {'all' if 'vision' in learns else learns[0]}": {
            "model": {"connector": options_of(kind)},
            "data": {"sequence_length": 64},
            "train": {"trainable": learns},
        }
        for kind in CONNECTORS
        for learns in (["connector"], ["vision", "language"])
        if learns == ["connector"]
        or kind in ("mlp_downsample", "pooling", "transformer", "qformer")
    },
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with distributed(tiny_run().parallel, seed=1) as ranks:
        yield ranks


@pytest.fixture(autouse=True)
def _plain_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of mlp_downsample computes a part again, and the norm's gradient otherwise."""

    chain: Any = reference.mlp_downsample

    def plain(*inputs: Any, has_cls: bool, eps: float) -> Any:
        return chain(*inputs, has_cls, eps)

    monkeypatch.setattr(mlp_downsample, "mlp_downsample", plain)


def _forward(
    query: Any, key: Any, _: Any, dropout: float = 0.0, is_causal: bool = False, **__: Any
) -> int:
    """Of the pairs that the mask leaves; torch has no formula for its kernel on CPUs."""
    b, a, s, d = query
    return int(4 * d * b * a * (pairs_of(s) if is_causal else s * key[2]))


def _backward(_: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Without the scores that it computes again."""
    *_unused, dropout, is_causal = rest
    return 2 * _forward(query, key, value, dropout, is_causal)


_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNELS = {
    _kernel: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def _counted(config: RunConfig, ranks: Ranks, batches: list[Microbatch]) -> int:
    trainer = Trainer(config, ranks, build_stages(config, ranks))
    with FlopCounterMode(display=False, custom_mapping=_KERNELS) as counter:
        trainer.step(batches)
    return counter.get_total_flops()


def _with_images(config: RunConfig) -> list[Microbatch]:
    """In one without images nothing goes back to what only images reach."""
    return [batch for batch in tiny_microbatches(config, 0, 1) if len(batch.image_starts)]


@pytest.mark.parametrize("name", CASES_OF_RUNS)
def test_a_step_of_whole_rows(name: str, ranks: Ranks) -> None:
    config = tiny_run(**CASES_OF_RUNS[name])
    batches = _with_images(config)
    length = config.data.sequence_length
    expected = step_flops(config).of(
        positions=len(batches) * length,
        pairs=len(batches) * pairs_of(length),
        images=sum(len(batch.image_starts) for batch in batches),
    )
    assert _counted(config, ranks, batches) == expected


def test_a_gradient_that_nobody_wants_is_not_counted(ranks: Ranks) -> None:
    """Of the output layer's input if nothing below learns. Megatron-Core's layer computes it all
    the same; without a GPU and other tensor ranks it is torch's own, which does not."""
    config = tiny_run(train={"trainable": ["language.head"]})
    positions = 8 * config.data.sequence_length
    expected = step_flops(config).of(
        positions=positions, pairs=8 * pairs_of(config.data.sequence_length), images=4
    )
    assert _counted(config, ranks, tiny_microbatches(config, 0, 1)) == expected


def test_a_step_of_packed_rows(ranks: Ranks) -> None:
    """Padding is computed and not counted, but for attention, which passes it over."""
    config = tiny_run()
    batches = _with_images(config)
    lengths = [((20, 12),), ((32,),), ((9, 3, 11),)]
    packed = [
        replace(batch, sample_lengths=each) for batch, each in zip(batches, lengths, strict=True)
    ]
    samples = [length for each in lengths for row in each for length in row]
    flops = step_flops(config)
    expected = flops.of(
        positions=sum(samples),
        pairs=sum(map(pairs_of, samples)),
        images=sum(len(batch.image_starts) for batch in batches),
    )
    padding = 3 * 32 - sum(samples)
    assert padding == 9
    assert _counted(config, ranks, packed) == expected + padding * flops.position

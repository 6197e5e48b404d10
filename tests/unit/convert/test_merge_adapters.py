"""Adapters merged into weights compute what they computed beside them, in every family."""

from typing import Any

import pytest
import torch

from tests.parity.lora_trace import EVERYWHERE, make_adapters_matter
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.run import RunConfig
from vila_mc.convert.merge_adapters import merged
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed


def _run(model: dict[str, Any], lora: dict[str, Any]) -> RunConfig:
    return tiny_run(model=model, train={"trainable": ["connector"]}, lora=lora)


def _logits(stage: VilaModel, config: RunConfig) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = stage.eval()(tiny_microbatches(config, 0, 1)[1], with_loss=False)
        return logits[..., : config.model.language.vocab_size]


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        ({}, EVERYWHERE),
        (
            {
                "language": dict(
                    family="qwen3",
                    head_width=24,
                    layers=2,
                    width=64,
                    ffn=96,
                    heads=4,
                    kv_heads=1,
                    vocab_size=131,
                    max_positions=64,
                )
            },
            EVERYWHERE,
        ),
        (
            {
                "vision": dict(
                    family="siglip",
                    image_size=28,
                    patch_size=7,
                    width=32,
                    layers=3,
                    heads=4,
                    ffn=64,
                )
            },
            dict(rank=3, alpha=1.5, vision_targets=["v_proj"]),
        ),
        ({}, dict(rank=2, targets=["k_proj"])),
        ({}, dict(rank=2, targets=["up_proj", "v_proj"])),
    ],
    ids=["everywhere", "qwen3", "siglip", "k alone", "up and v"],
)
def test_the_merged_model_computes_the_same(model: dict[str, Any], lora: dict[str, Any]) -> None:
    config, plain = _run(model, lora), _run(model, {})
    with distributed(config.parallel, seed=1) as ranks:
        (adapted,) = build_stages(config, ranks)
        make_adapters_matter(adapted, ranks)
        state = lazily({name: weight.detach() for name, weight in adapted.named_parameters()})
        whole = merged(state, config.model, config.lora)
        (without,) = build_stages(plain, ranks)
        before = _logits(without, plain)
        with torch.no_grad():
            for name, weight in without.named_parameters():
                weight.copy_(whole.pop(name).read())
        assert not whole
        expected = _logits(adapted, config)
        assert _logits(without, plain).allclose(expected, rtol=0, atol=2e-6)
        assert (before - expected).abs().max() > 1e-3

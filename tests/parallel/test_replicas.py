"""Copies of weights that differ in one bit are named, with their ranks; equal ones are equal."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.tiny import QWEN3, tiny_microbatches, tiny_run
from vila_mc.errors import TrainingError
from vila_mc.model.build import build_stages
from vila_mc.model.freeze import weights_by_name
from vila_mc.parallel.groups import distributed
from vila_mc.parallel.replicas import checksum
from vila_mc.train.step import Trainer

_FACTORS = torch.arange(1, 64, 2) * -0x61C8864680B583EB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
def test_every_bit_counts(dtype: torch.dtype) -> None:
    """Over several chunks: in each element, its first, its last and a middle bit."""
    generator = torch.Generator().manual_seed(1)
    weight = (100 * torch.rand(5, 13, generator=generator)).to(dtype)
    before, width = int(checksum(weight, _FACTORS)), weight.element_size()
    assert 0 <= before < 2**62
    as_bytes = weight.view(-1).view(torch.uint8)
    for element in range(weight.numel()):
        for byte, bit in ((0, 0), (width - 1, 7), (width // 2, 3)):
            as_bytes[element * width + byte] ^= 1 << bit
            assert int(checksum(weight, _FACTORS)) != before
            as_bytes[element * width + byte] ^= 1 << bit
    assert int(checksum(weight, _FACTORS)) == before


def test_what_a_plain_sum_would_not_see() -> None:
    weight = torch.arange(200.0)
    before = int(checksum(weight, _FACTORS))
    for one, other in ((0, 1), (3, 150), (0, 199)):
        changed = weight.clone()
        changed[[one, other]] = changed[[other, one]]
        assert int(checksum(changed, _FACTORS)) != before


def _flip(weight: torch.Tensor) -> None:
    """The lowest bit of the last element."""
    weight.detach().view(-1).view(torch.uint8)[-weight.element_size()] ^= 1


def _flips(
    parallel: dict[str, Any], sections: dict[str, Any], flips: Sequence[tuple[str, int]]
) -> list[str]:
    """Train two steps, which find all equal; then what each flip makes the third say."""
    train = {"check_replicas_every": 1, **sections.get("train", {})}
    config = tiny_run(parallel=parallel, **{**sections, "train": train})
    with distributed(config.parallel, seed=1, timeout_minutes=2) as ranks:
        trainer = Trainer(config, ranks, build_stages(config, ranks))
        batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
        for _ in range(2):
            trainer.step(batches)
        trainer.copies.require_equal("now")
        said = []
        for name, rank in flips:
            here = [w for stage in trainer.stages for n, w in weights_by_name(stage) if n == name]
            mine = here if rank == ranks.rank else []
            assert rank != ranks.rank or mine, f"there is no {name} on rank {rank}"
            for weight in mine:
                _flip(weight)
            with pytest.raises(TrainingError) as raised:
                trainer.step(batches)
            for weight in mine:
                _flip(weight)
            said.append(str(raised.value))
        trainer.step(batches)
        return said


_NORM, _QKV = "language.decoder.final_layernorm.weight", "self_attention.linear_qkv.weight"
_TABLE = "language.embedding.word_embeddings.weight"
_LORA = {"lora": {"rank": 4}, "train": {"trainable": ["connector"], "precision": "bf16"}}
_Case = tuple[dict[str, Any], dict[str, Any], list[tuple[str, int]]]
CASES: dict[str, _Case] = {
    "tensor 2": (
        dict(tensor=2, sequence=True),
        {"model": QWEN3},
        [
            (_NORM, 1),
            ("vision.decoder.layers.1.self_attention.linear_proj.bias", 0),
            ("connector.fc1.bias", 1),
            ("language.decoder.layers.3.self_attention.q_layernorm.weight", 1),
        ],
    ),
    "data 2": (
        {},
        _LORA,
        [
            (f"language.decoder.layers.2.{_QKV}", 1),  # frozen
            ("language.decoder.layers.2.self_attention.linear_qkv.lora_b_q_proj", 1),
            (_TABLE, 0),
        ],
    ),
    "pipeline 2, tied": (
        dict(pipeline=2),
        {"model": QWEN3},
        [(_TABLE, 0), ("language.output_layer.weight", 1)],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_bit_on_one_rank(case: str) -> None:
    parallel, sections, flips = CASES[case]
    first, second = run_ranks(2, _flips, parallel, sections, flips)
    assert first == second
    for (name, _), said in zip(flips, first, strict=True):
        called = _TABLE if case == "pipeline 2, tied" else name
        assert said.startswith(f"copies of weights differ in step 3: {called}")
        assert " is one on rank 0 (" in said
        assert "another on rank 1 (" in said
        assert "more" not in said


@pytest.mark.slow
def test_the_one_of_many_is_named() -> None:
    """Four ranks, of which two hold each part of a split weight."""
    flips = [(_NORM, 2), (f"language.decoder.layers.0.{_QKV}", 3)]
    norm, qkv = run_ranks(4, _flips, dict(tensor=2), {}, flips)[0]
    assert f"{_NORM} on rank 2 (" in norm
    assert "is not what it is on 3 other ranks" in norm
    assert f"{_QKV} (part 1 of it) is one on rank 1 (" in qkv
    assert "another on rank 3 (" in qkv

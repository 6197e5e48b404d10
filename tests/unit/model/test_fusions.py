"""What is fused follows from the part, the precision and what this machine has."""

import sys
import types

import pytest
import torch

from tests.support.tiny import tiny_run
from vila_mc.model import fusions
from vila_mc.model.fusions import fusion_options, fusions_line
from vila_mc.train.identity import identity

SWIGLU, CROSS_ENTROPY, GRADIENTS = (
    "bias_activation_fusion",
    "cross_entropy_loss_fusion",
    "gradient_accumulation_fusion",
)


@pytest.mark.parametrize(
    ("precision", "part", "on"),
    [
        ("fp32", "language", {SWIGLU}),
        ("fp16", "language", {SWIGLU}),
        ("bf16", "language", {SWIGLU, CROSS_ENTROPY}),
        ("bf16", "vision", set()),
    ],
)
def test_what_is_fused_follows_from_part_and_precision(
    precision: str, part: str, on: set[str]
) -> None:
    options = fusion_options(tiny_run(train={"precision": precision}), part)
    assert {name for name, is_on in options.items() if is_on} == on


@pytest.mark.parametrize(
    ("is_plain", "has_gpu", "compiles", "line"),
    [
        (False, True, True, "fused SwiGLU, cross entropy"),
        (False, True, False, "fused none"),
        (False, False, True, "fused none"),  # a driver, and a torch that cannot use it
        (True, False, False, "fused SwiGLU, cross entropy"),
        (True, True, False, "fused SwiGLU, cross entropy"),
    ],
)
def test_what_is_compiled_is_for_a_gpu(
    is_plain: bool, has_gpu: bool, compiles: bool, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1" if is_plain else "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(fusions, "can_compile", lambda: compiles)
    assert fusions_line(tiny_run(train={"precision": "bf16"})) == line


@pytest.mark.parametrize("part", ["language", "vision"])
def test_weight_gradients_are_fused_where_the_kernel_is(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = "fused_weight_gradient_mlp_cuda"
    monkeypatch.setitem(sys.modules, kernel, types.ModuleType(kernel))
    assert fusion_options(tiny_run(), part)[GRADIENTS]
    assert fusions_line(tiny_run()) == "fused SwiGLU, weight gradients"


def test_ranks_must_agree_on_it() -> None:
    """A fused cross entropy makes one collective of two: others would wait for ever."""
    assert identity(tiny_run(), [])["what is fused"] == "fused SwiGLU"
    in_bf16 = tiny_run(train={"precision": "bf16"})
    assert identity(in_bf16, [])["what is fused"] == "fused SwiGLU, cross entropy"

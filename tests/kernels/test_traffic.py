"""The kernels move hardly more bytes than they must. benchmarks/kernel_traffic.py: real sizes."""

import pytest
import torch

from tests.kernels.calls import Call, patch_calls, patchify_call, splice_calls
from tests.support.emulated_ops import EmulatedOps
from tests.support.emulation import Emulator
from tests.support.kernel_bytes import count_bytes

BF16 = torch.bfloat16
CALLS = [
    *patch_calls(BF16, images=1, grid=16, width=256, factor=2, has_cls=True),
    *splice_calls(BF16, starts=[[0, 1], [1, 5]], each=4, width=2048, sequence_first=False),
    patchify_call(BF16, images=1, y=56, x=336, patch=14),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_a_kernel_moves_at_most_a_tenth_more_than_it_must(emulator: Emulator, call: Call) -> None:
    few_blocks = EmulatedOps(emulator, build="traffic", multiprocessors=1, blocks_each=2)
    assert 1 <= count_bytes(call, few_blocks).ratio() <= 1.1


def test_bytes_that_are_moved_twice_are_counted_twice(emulator: Emulator) -> None:
    norm = next(call for call in CALLS if call.op == "downsample_layernorm")
    block_each_token = EmulatedOps(emulator, build="traffic", multiprocessors=64)
    counted = count_bytes(norm, block_each_token)
    weight = norm.arguments[1]
    assert block_each_token.traffic["weight"].loaded == 64 * weight.nbytes
    assert counted.ratio() > 1.5

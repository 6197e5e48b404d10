"""Bytes that the CUDA kernels move, counted under emulation, against the least that would do.

A count and no timing: it needs a C++ compiler and no GPU. Sizes are those of VILA-7B's projector
(ViT width 1024, a 24 x 24 grid, LLM width 4096) in bf16; one image on two multiprocessors stands
for 64 images on an H100's 132, as blocks then go through as many tokens each.
"""

import sys
import tempfile
from pathlib import Path

from claims import Claim, parser, report

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/, which no package installs

import torch

from tests.kernels.calls import Call, patch_calls, patchify_call, splice_calls
from tests.support.emulated_ops import EmulatedOps
from tests.support.emulation import COMPILER, Emulator
from tests.support.kernel_bytes import count_bytes
from vila_mc.errors import SetupError, run_cli

HOW = "loads + stores of all threads / inputs once + outputs once; a warp's equal addresses once"


def _claim(
    call: Call, emulated: EmulatedOps, *, suffix: str = "", target: float | None = None
) -> Claim:
    ratio = count_bytes(call, emulated).ratio()
    return Claim(f"bytes of {call.op}{suffix}", ratio, "x", target, "lower", HOW)


def main() -> int:
    arguments = parser(__doc__).parse_args()
    if COMPILER is None:
        raise SetupError("no C++ compiler was found; install g++ or name one with CXX.")
    dtype = torch.bfloat16
    calls = [
        *patch_calls(dtype, images=1, grid=24, width=1024, factor=2, has_cls=True),
        *splice_calls(dtype, starts=[[0, 1], [1, 5]], each=4, width=4096, sequence_first=True),
        patchify_call(dtype, images=1, y=336, x=336, patch=14),
    ]
    with tempfile.TemporaryDirectory(prefix="vila_mc_traffic_") as directory:
        emulated = EmulatedOps(Emulator(Path(directory)), build="traffic", blocks_each=8)
        emulated.multiprocessors = 2
        claims = [_claim(call, emulated, target=1.1) for call in calls]
        emulated.multiprocessors = 16  # what 8 images leave each of 132
        norms = [call for call in calls if "layernorm" in call.op]
        claims += [_claim(call, emulated, suffix=", 8 images") for call in norms]
    return report(claims, arguments)


if __name__ == "__main__":
    run_cli(main)

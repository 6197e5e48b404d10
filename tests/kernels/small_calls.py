"""A small call of every CUDA kernel, for compute-sanitizer: python -m tests.kernels.small_calls."""

import torch
from torch import Tensor

from tests.kernels.calls import Call, assert_close, patch_calls, patchify_call, splice_calls
from vila_mc.kernels import native

# By 16 bytes and number by number, with a padded grid, a shard, and more tokens than one wave.
CALLS: list[Call] = [
    *patch_calls(torch.bfloat16, images=3, grid=5, width=264, factor=2, has_cls=True),
    *patch_calls(torch.float16, images=1, grid=3, width=5, factor=2, has_cls=False),
    *patch_calls(torch.float32, images=40, grid=8, width=64, factor=2, has_cls=True),
    *splice_calls(torch.bfloat16, starts=[[1, 3], [0, 0]], each=4, width=264, sequence_first=True),
    *splice_calls(
        torch.float32, starts=[[1, 3]], each=2, width=3, sequence_first=False, shard=(4, 6)
    ),
    patchify_call(torch.bfloat16, images=2, y=28, x=28, patch=7),
    patchify_call(torch.float16, images=1, y=27, x=27, patch=3),
]


def on_gpu(call: Call) -> tuple[Tensor, ...]:
    """What the CUDA kernels make of a call whose arguments lie on the CPU."""
    arguments = [value.cuda() if isinstance(value, Tensor) else value for value in call.arguments]
    made = Call(call.op, tuple(arguments)).on(torch.ops.vila_mc)
    torch.cuda.synchronize()
    return tuple(tensor.cpu() for tensor in made)


def main() -> None:
    assert "cuda" in native.loaded(), native.missing("cuda")
    for call in CALLS:
        assert_close(call, on_gpu(call))
    print(f"{len(CALLS)} calls of {len({call.op for call in CALLS})} operations")


if __name__ == "__main__":
    main()

"""Every kernel under the sanitizers at tiny shapes, and mistakes that each check has to catch."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.kernels.calls import assert_close, patch_calls, patchify_call, splice_calls
from tests.support.emulated_ops import EmulatedOps
from tests.support.emulation import CSRC, Build, Emulator, KernelFaultError, works


@pytest.fixture(autouse=True)
def _needs_its_sanitizer(request: pytest.FixtureRequest, emulator: Emulator) -> None:
    callspec = getattr(request.node, "callspec", None)
    build = callspec.params.get("build", "thread") if callspec else "plain"
    if not works(build):
        pytest.skip(f"needs a compiler whose sanitizer of the {build} build works here")


CALLS = {
    f"{call.op}-{layout}": call
    for layout, calls in {
        "vectors": [
            *patch_calls(torch.bfloat16, images=1, grid=3, width=8, factor=2, has_cls=True),
            *splice_calls(
                torch.bfloat16, starts=[[1, 3], [0, 0]], each=2, width=8, sequence_first=True
            ),
            patchify_call(torch.bfloat16, images=1, y=8, x=16, patch=4),
        ],
        "numbers": [
            *patch_calls(torch.float32, images=2, grid=2, width=3, factor=2, has_cls=False),
            *splice_calls(
                torch.float32, starts=[[1, 3]], each=2, width=3, sequence_first=False, shard=(4, 6)
            ),
            patchify_call(torch.float16, images=1, y=3, x=3, patch=3),
        ],
        "warps": patch_calls(torch.float32, images=1, grid=4, width=264, factor=2, has_cls=True)[
            2:
        ],
    }.items()
    for call in calls
}


@pytest.mark.parametrize("build", ["address", "thread"])
@pytest.mark.parametrize("name", list(CALLS))
def test_no_sanitizer_objects_to_a_kernel(emulator: Emulator, name: str, build: Build) -> None:
    call = CALLS[name]
    assert_close(call, call.on(EmulatedOps(emulator, build=build, order=5)))


def _run(emulator: Emulator, name: str, build: Build, order: int = 0) -> torch.Tensor:
    run = emulator.run(
        name,
        numbers={"order": order},
        inputs={"in": torch.ones(64)},
        outputs={"out": torch.empty(64)},
        build=build,
    )
    return run.outputs["out"]


@pytest.mark.parametrize(
    ("bug", "build", "said"),
    [
        ("barriers_diverge", "plain", r"wait at different barriers: .* thread \(40, 0, 0\) at"),
        ("lane_missing", "plain", "waits for lanes that never come"),
        ("lane_outside_mask", "plain", "a shuffle reads a lane outside its mask"),
        ("shared_overrun", "address", "heap-buffer-overflow .*in shared_overrun"),
        ("dynamic_shared_overrun", "address", "heap-buffer-overflow .*in dynamic_shared_overrun"),
        ("global_overrun", "address", "heap-buffer-overflow .*in global_overrun"),
        ("vector_misaligned", "address", "misaligned address .* requires 16 byte alignment"),
        ("barrier_missing", "thread", "data race .*in barrier_missing"),
        ("second_barrier_missing", "thread", "data race .*in second_barrier_missing"),
        ("warp_barrier_missing", "thread", "data race .*in warp_barrier_missing"),
        ("blocks_add_plainly", "thread", "data race .*in blocks_add_plainly"),
    ],
)
def test_a_mistake_is_caught(emulator: Emulator, bug: str, build: Build, said: str) -> None:
    with pytest.raises(KernelFaultError, match=said):
        _run(emulator, bug, build)


@pytest.mark.parametrize("bug", ["barrier_missing", "shared_unwritten"])
def test_shared_memory_read_before_it_is_written_is_nan(emulator: Emulator, bug: str) -> None:
    assert _run(emulator, bug, "plain", order=7).isnan().any()


@pytest.mark.parametrize(
    "right", ["barrier_present", "warp_barrier_present", "blocks_add_atomically"]
)
@pytest.mark.parametrize("build", ["plain", "address", "thread"])
def test_the_same_without_the_mistake_passes(emulator: Emulator, right: str, build: Build) -> None:
    _run(emulator, right, build, order=3)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "op"),
    [
        ("reduce.cuh", "    __syncthreads();\n", "", "downsample_layernorm"),
        (
            "layernorm_backward.cuh",
            "SIMT_SHARED(float, product_scratch, kMaxWarps);",
            "float* const product_scratch = sum_scratch;",
            "downsample_layernorm_backward",
        ),
    ],
    ids=["no barrier in the sum", "one scratch for two sums"],
)
def test_a_mistake_in_a_real_kernel_is_a_race(
    tmp_path: Path, file: str, right: str, wrong: str, op: str
) -> None:
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    source = csrc / "cuda" / file
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    emulated = EmulatedOps(Emulator(tmp_path / "build", csrc), build="thread", multiprocessors=1)
    with pytest.raises(KernelFaultError, match="data race"):
        CALLS[f"{op}-warps"].on(emulated)

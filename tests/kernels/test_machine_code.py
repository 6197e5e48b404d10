"""nvcc compiles the CUDA operations, and the code it makes is what the kernels were written for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cuda_toolkit import (
    ARCHITECTURES,
    HAS_DISASSEMBLER,
    NVCC,
    ROOT,
    Kernel,
    compile_objects,
    kernels_in,
    link,
)

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc; CUDA_HOME may name its toolkit")
needs_disassembler = pytest.mark.skipif(
    not HAS_DISASSEMBLER, reason="needs cuobjdump and nvdisasm (the dev extra has them)"
)

MOST_REGISTERS = {"norm_backward": 168, "norm_forward": 128, "": 48}
"""By part of a kernel's name: 65,536 registers over the 384 threads of the norm, and few enough
elsewhere for 1,280 threads on a multiprocessor."""
WIDE = ("Li8E", "Li4E", "VectorIjLi4E", "Li16E")
"""What stands in the name of a kernel that moves 16 bytes at once."""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The compiled operations; nvcc takes a minute for them."""
    return compile_objects(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kernels(request: pytest.FixtureRequest, objects: list[Path]) -> list[Kernel]:
    """All kernels for one architecture."""
    found = kernels_in(objects, request.param)
    assert len(found) > 30
    return found


def test_the_library_links_and_registers_every_operation(
    objects: list[Path], tmp_path: Path
) -> None:
    library = tmp_path / "libvila_mc_cuda.so"
    link(objects, library)
    # In a process of its own, where no other library has registered the operations.
    program = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); "
        "has = torch._C._dispatch_has_kernel_for_dispatch_key; "
        "print(*[name for name in sys.argv[2:] if not has(f'vila_mc::{name}', 'CUDA')])"
    )
    names = re.findall(r'"(\w+)\(', (ROOT / "csrc" / "ops.cpp").read_text())
    assert len(names) == 8
    words = [sys.executable, "-c", program, str(library), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@needs_disassembler
def test_no_kernel_spills_registers(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        spills = [word for word in kernel.instructions if word.startswith(("LDL", "STL"))]
        assert not spills, kernel.name
        assert kernel.stack_bytes == 0, kernel.name


@needs_disassembler
def test_registers_leave_room_for_enough_threads(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        most = next(most for part, most in MOST_REGISTERS.items() if part in kernel.name)
        assert kernel.registers <= most, kernel.name


@needs_disassembler
def test_wide_kernels_move_16_bytes_at_once_and_several_loads_at_a_time(
    kernels: list[Kernel],
) -> None:
    wide = [kernel for kernel in kernels if any(mark in kernel.name for mark in WIDE)]
    assert len(wide) >= 14
    for kernel in wide:
        if "patchify" in kernel.name:  # one strip in, one strip out, through shared memory
            assert kernel.most_loads_in_flight("LDG.E.128") >= 1, kernel.name
        else:
            assert kernel.most_loads_in_flight("LDG.E.128") >= 4, kernel.name
        stores = [word for word in kernel.instructions if word.startswith("STG.E.128")]
        assert stores, kernel.name


@needs_disassembler
def test_a_kernel_that_spills_and_loads_one_by_one_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(
        "__global__ void bad(const float* x, float* y, int at) {\n"
        "    float held[64];\n"
        "    for (int i = 0; i < 64; ++i) { held[i] = x[i]; y[i] = 0; }\n"
        "    y[64] = held[at];\n"  # an index that is not known wants an array in memory
        "}\n"
    )
    (bad,) = kernels_in(compile_objects(tmp_path, [source]), "sm_80")
    assert bad.stack_bytes > 0
    assert "STL" in {word.split(".")[0] for word in bad.instructions}
    assert bad.most_loads_in_flight("LDG.E") < 4
    assert bad.most_loads_in_flight("LDG.E.128") == 0

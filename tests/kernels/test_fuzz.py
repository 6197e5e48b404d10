"""csrc/text and csrc/cpu under sanitizers, with vocabularies, texts and sizes that nobody means."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from tests.support.cuda_toolkit import TORCH_TARGET
from tests.support.emulation import COMPILER, CSRC, ROOT, works

SANITIZED = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]

pytestmark = pytest.mark.skipif(
    COMPILER is None or not works("address"), reason="needs a compiler whose sanitizers work here"
)


def _compile(*words: object) -> None:
    done = subprocess.run(
        [str(COMPILER), *SANITIZED, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _fuzz_text(csrc: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "text"
    _compile("-Wall", "-Wextra", "-Werror", csrc / "fuzz" / "text.cpp", "-o", program)
    return subprocess.run([program, "1", "200"], capture_output=True, text=True, check=False)


def test_no_vocabulary_or_text_leads_the_encoder_out_of_its_memory(tmp_path: Path) -> None:
    done = _fuzz_text(CSRC, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_room_of_one_id_per_byte_is_found_too_small(tmp_path: Path) -> None:
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    source, right = csrc / "text" / "bpe.h", " + (ids_of_space_ - 1) * spaces"
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, " + 0 * spaces"))
    done = _fuzz_text(csrc, tmp_path)
    assert "heap-buffer-overflow" in done.stderr or "are the most" in done.stderr


@pytest.fixture(scope="module")
def sanitized_ops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU library, watched by sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    target = f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        _compile("-fPIC", target, *system, "-c", source, "-o", made)
        return made

    # The largest first, as two compilers run at a time.
    sources = sorted((CSRC / "cpu").glob("*.cpp"), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*sources, CSRC / "ops.cpp"]))
    library = folder / "libvila_mc_cpu.so"
    torch_libraries = Path(torch.__file__).parent / "lib"
    _compile("-shared", *objects, f"-L{torch_libraries}", "-ltorch_cpu", "-lc10", "-o", library)
    return library


def _runtime(name: str) -> str:
    said = subprocess.run(
        [str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return said.stdout.strip()


def test_no_size_leads_an_operation_out_of_its_memory(sanitized_ops: Path) -> None:
    runtimes = [_runtime("libasan.so"), _runtime("libubsan.so")]
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("needs g++'s sanitizers as libraries that can be preloaded")
    sanitizers = {
        "LD_PRELOAD": " ".join(runtimes),
        # Python leaks by design; what is far too large is refused and not tried.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz_ops", sanitized_ops],
        cwd=ROOT,
        env=os.environ | sanitizers,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    calls, refused = (int(word) for word in done.stdout.split() if word.isdecimal())
    assert calls > 5000
    assert 0 < refused < calls

"""Builds the emulator of csrc/emulation/ and runs one kernel call at a time, each in a process.

The builds: ``plain``; ``address`` (AddressSanitizer and UndefinedBehaviorSanitizer); ``thread``
(ThreadSanitizer); ``traffic`` (counts the bytes that kernels load and store).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"

Build = Literal["plain", "address", "thread", "traffic"]

_FLAGS: dict[Build, list[str]] = {
    "plain": ["-O1"],
    "address": [
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    # The flag makes the compiler announce every access; what it links in place of the sanitizer
    # counts them.
    "traffic": ["-O1", "-fsanitize=thread"],
}
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # unroll is nvcc's
_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
"""The C++ compiler; None where there is none."""


@cache
def works(build: Build) -> bool:
    """Whether this machine can build and start a program so: sanitizers may lack their library, or
    refuse a kernel that scatters memory further than they expect."""
    with tempfile.TemporaryDirectory(prefix="vila_mc_sanitizer_") as directory:
        source, program = Path(directory, "empty.cpp"), Path(directory, "empty")
        source.write_text("int main() { return 0; }\n")
        words = [str(COMPILER), *_FLAGS[build], str(source), "-o", str(program)]
        built = subprocess.run(words, capture_output=True, check=False)
        return not built.returncode and not subprocess.run([program], check=False).returncode


class KernelFaultError(Exception):
    """The emulator or a sanitizer stopped a kernel; says what they said."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a kernel moved between its threads and one tensor."""

    loaded: int
    stored: int


@dataclass(frozen=True, slots=True)
class Run:
    """What came out of one call."""

    outputs: dict[str, Tensor]
    traffic: dict[str, Traffic]
    """By tensor; empty but for the traffic build."""


class Emulator:
    """The emulated kernels, built in a directory of their own when they are first asked for.

    Args:
        directory: where builds and calls go.
        csrc: the sources; a changed copy shows what a mistake in a kernel would lead to.
    """

    def __init__(self, directory: Path, csrc: Path = CSRC) -> None:
        self.directory = directory
        self.sources = csrc / "emulation"
        self._calls = count()

    def run(
        self,
        op: str,
        *,
        numbers: Mapping[str, int | float],
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        build: Build = "plain",
    ) -> Run:
        """Run one call.

        Args:
            op: a name in csrc/emulation/ops.cpp or seeded_bugs.cpp.
            numbers: sizes and options; ``order`` shuffles the order of threads,
                ``multiprocessors`` and ``blocks_each`` size the device that is played.
            inputs: tensors that the kernel reads.
            outputs: tensors whose shape and format the kernel's outputs have.
            build: which of the builds to run.

        Raises:
            KernelFaultError: the kernel broke a rule, or the call makes no sense.
        """
        program = self._program(build)
        stem = self.directory / f"call{next(self._calls)}"
        case, results = stem.with_suffix(".case"), stem.with_suffix(".results")
        _write_case(case, op, numbers, inputs, outputs)
        done = subprocess.run(
            [program, case, results],
            capture_output=True,
            text=True,
            env=os.environ | _ENVIRONMENT,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise KernelFaultError(f"{op}: status {done.returncode}\n{done.stderr.strip()}")
        made = _read_results(results, outputs)
        case.unlink()
        results.unlink()
        return Run(made, _read_traffic(done.stdout))

    def _program(self, build: Build) -> Path:
        program = self.directory / build
        if not program.exists():
            assert COMPILER is not None, "ask COMPILER first"
            self.directory.mkdir(parents=True, exist_ok=True)
            self._compile(build, program)
        return program

    def _compile(self, build: Build, program: Path) -> None:
        system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
        base = [str(COMPILER), "-std=c++17", *_WARNINGS, *system]
        kernels = [self.sources / name for name in ("ops.cpp", "seeded_bugs.cpp")]
        # What the emulator itself does is no traffic of a kernel, so no sanitizer watches it.
        unwatched = [self.sources / name for name in ("fiber.cpp", "emulator.cpp", "case.cpp")]
        unwatched += [self.sources / "main.cpp"]
        is_counting = build == "traffic"
        unwatched += [self.sources / "traffic.cpp"] if is_counting else []
        objects = []
        for source in (*kernels, *unwatched):
            made = self.directory / f"{build}_{source.stem}.o"
            flags = _FLAGS[build] if source in kernels else ["-O2"]
            flags = [*flags, "-DVILA_MC_TRAFFIC"] if is_counting else flags
            _call([*base, *flags, "-c", str(source), "-o", str(made)])
            objects.append(str(made))
        link = [flag for flag in _FLAGS[build] if flag.startswith("-fsanitize")]
        _call([str(COMPILER), *objects, *([] if is_counting else link), "-o", str(program)])


def _call(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr}")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _write_case(
    path: Path,
    op: str,
    numbers: Mapping[str, int | float],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> None:
    lines = [f"op {op}"]
    for name, number in numbers.items():
        kind = "real" if isinstance(number, float) else "int"
        lines.append(f"{kind} {name} {number if kind == 'real' else int(number)}")
    lines += [f"input {name} {tensor.nbytes}" for name, tensor in inputs.items()]
    lines += [f"output {name} {tensor.nbytes}" for name, tensor in outputs.items()]
    header = "\n".join([*lines, "data\n"]).encode()
    path.write_bytes(header + b"".join(_bytes(tensor) for tensor in inputs.values()))


def _read_results(path: Path, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    data, made, start = bytearray(path.read_bytes()), {}, 0
    for name, like in outputs.items():
        if like.numel():
            flat = torch.frombuffer(data, dtype=like.dtype, count=like.numel(), offset=start)
            made[name] = flat.view(like.shape).clone()
        else:
            made[name] = torch.empty_like(like)
        start += like.nbytes
    assert start == len(data)
    return made


def _read_traffic(text: str) -> dict[str, Traffic]:
    lines = [line.split() for line in text.splitlines()]
    return {name: Traffic(int(loaded), int(stored)) for name, loaded, stored in lines}

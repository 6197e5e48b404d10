"""NVIDIA's compiler and disassembler, where a machine has them. None of it needs a GPU."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
TORCH_TARGET = "0x020a000000000000"
"""torch 2.10, as in setup.py."""


def _folders() -> list[Path]:
    """Where programs of the toolkit may lie, those of pip's packages included."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations or [] if package else []
    return folders + [Path(root, "cu13", "bin") for root in roots]


def find(program: str) -> Path | None:
    """A program of the toolkit; None where there is none."""
    found = shutil.which(program, path=os.pathsep.join(map(str, _folders())))
    found = found or shutil.which(program)
    return Path(found) if found else None


_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
"""Of a line of machine code: after its address, and the predicate it depends on."""

NVCC = find("nvcc")
CUOBJDUMP = find("cuobjdump")
HAS_DISASSEMBLER = CUOBJDUMP is not None and find("nvdisasm") is not None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel as a GPU would run it."""

    name: str
    """Mangled, template arguments included."""
    instructions: tuple[str, ...]
    """Opcodes with their suffixes, in order: LDG.E.128 ..."""
    registers: int
    """Of one thread."""
    stack_bytes: int
    """Of one thread: what did not fit its registers."""

    def most_loads_in_flight(self, opcode: str) -> int:
        """The longest run of one kind of global load that no global store breaks."""
        best = run = 0
        for instruction in self.instructions:
            if instruction.startswith("STG"):
                run = 0
            run += instruction.startswith(opcode)
            best = max(best, run)
        return best


def compile_objects(
    directory: Path, sources: Sequence[Path] = tuple(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
) -> list[Path]:
    """Compile csrc/cuda/*.cu for both architectures, as setup.py does, warnings as errors."""
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    codes = []
    for architecture in ARCHITECTURES:
        virtual = architecture.replace("sm", "compute")
        codes += ["-gencode", f"arch={virtual},code={architecture}"]

    def compile_one(source: Path) -> Path:
        made = directory / f"{source.stem}.o"
        words = [str(NVCC), "-c", str(source), "-o", str(made), "-std=c++20", "-O3", *codes]
        words += [
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            "-DUSE_CUDA",
            "-Werror=all-warnings",
            *system,
        ]
        words += ["-Werror=all-warnings"]
        _run([*words, "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"])
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: list[Path], library: Path) -> None:
    """Link the objects and the signatures to one library; every symbol must be found."""
    signatures = library.with_suffix(".signatures.o")
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    words = ["g++", "-std=c++20", "-fPIC", "-c", str(ROOT / "csrc" / "ops.cpp"), *system]
    _run([*words, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-o", str(signatures)])
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    folders += [f"-L{NVCC.parents[1] / 'lib64'}"] if NVCC else []
    libraries = ["-lcudart", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
    names = [str(path) for path in (*objects, signatures)]
    _run(["g++", "-shared", *names, "-o", str(library), *folders, *libraries, "-Wl,--no-undefined"])


def kernels_in(objects: list[Path], architecture: str) -> list[Kernel]:
    """Every kernel in compiled objects, disassembled."""
    kernels = []
    for path in objects:
        usage = _run([str(CUOBJDUMP), "-res-usage", "-arch", architecture, str(path)])
        resources = {
            name: (int(registers), int(stack))
            for name, registers, stack in re.findall(
                r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", usage
            )
        }
        code = _run([str(CUOBJDUMP), "-sass", "-arch", architecture, str(path)])
        for name, body in re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function :|\Z)", code, re.S):
            opcodes = re.findall(
                r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", body, re.M
            )
            kernels.append(Kernel(name, tuple(opcodes), *resources[name]))
    return kernels


def _run(words: list[str]) -> str:
    path = os.pathsep.join([*map(str, _folders()), os.environ.get("PATH", "")])
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout

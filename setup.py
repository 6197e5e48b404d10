"""Builds the native operations in csrc/ where that is possible. The rest stands in pyproject.toml.

Two libraries of torch's stable ABI, free of Python's: csrc/cpu wherever there is a C++ compiler,
csrc/cuda where there is an NVIDIA GPU and nvcc. With the first comes csrc/text, a pybind11 module.
VILA_MC_BUILD_CPU and VILA_MC_BUILD_CUDA overrule that: 0 leaves a library out, 1 fails where it
cannot be built. Without a library vila_mc uses plain torch. docs/kernels.md says more.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

DEFINES = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
"""The oldest torch that the libraries load on: 2.10, below what pyproject.toml asks for."""

OPTIMISED = ["-O3", "-g0", "-fopenmp-simd", "-fvisibility=hidden"]
if platform.machine() == "x86_64":
    OPTIMISED.append("-mprefer-vector-width=512")  # of the versions that have such vectors
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
GPUS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]


def missing_for_cpu() -> str | None:
    """What the CPU libraries lack, None if nothing."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    return None if shutil.which(compiler) else f"C++ compiler ({compiler})"


def missing_for_cuda(torch: Any, cuda_home: str, needs_gpu: bool) -> str | None:
    """What the CUDA library lacks, None if nothing."""
    if torch.version.cuda is None:
        return "CUDA build of torch"
    if needs_gpu and not torch.cuda.is_available():
        return "NVIDIA GPU"
    nvcc = Path(cuda_home, "bin", "nvcc")
    if not nvcc.exists():
        return f"nvcc ({nvcc}; CUDA_HOME says where it is)"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)", said)
    wanted = torch.version.cuda.split(".")[0]
    if release is None or release.group(1) != wanted:
        return f"nvcc of CUDA {wanted}, torch's version"
    return missing_for_cpu()


def is_built(name: str, missing: str | None) -> bool:
    """Whether to build a library: as VILA_MC_BUILD_<name> says, else if nothing is missing."""
    variable = f"VILA_MC_BUILD_{name}"
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        sys.exit(f"error: {variable} is {choice!r}; 0 leaves it out, 1 insists on it.")
    if choice == "1" and missing:
        sys.exit(f"error: {variable} is 1, but there is no {missing}. Install it or set 0.")
    if missing:
        print(f"vila_mc: no {name} library, for there is no {missing}; plain torch does its work")
    return not missing and choice != "0"


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob(f"*{suffix}"))


def headers() -> list[str]:
    """What, when it changes, is a reason to build again."""
    return sorted(str(path) for path in Path("csrc").rglob("*.*h"))


def libraries() -> dict[str, Any]:
    """What setuptools needs to build; nothing without torch, as under pip's build isolation."""
    if Path("/usr/local/cuda").exists():  # torch's own guess can be a folder above it
        os.environ.setdefault("CUDA_HOME", "/usr/local/cuda")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        is_built("CPU", "torch at build time (use pip's --no-build-isolation)")
        return {}
    # As system headers torch's own are free to warn.
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    extensions = []
    if is_built("CPU", missing_for_cpu()):
        cpu = cpp_extension.CppExtension(
            "vila_mc.kernels.libvila_mc_cpu",
            ["csrc/ops.cpp", *sources("cpu", ".cpp")],
            define_macros=DEFINES,
            depends=headers(),
            extra_compile_args=[*OPTIMISED, *WARNINGS, *system],
            py_limited_api=True,
        )
        text = Pybind11Extension(
            "vila_mc.kernels._text",
            sources("text", ".cpp"),
            cxx_std=17,
            extra_compile_args=["-O3", "-g0", *WARNINGS],
        )
        extensions += [cpu, text]
    needs_gpu = os.environ.get("VILA_MC_BUILD_CUDA") != "1"
    missing = missing_for_cuda(torch, cpp_extension.CUDA_HOME or "", needs_gpu)
    if is_built("CUDA", missing):
        cuda = cpp_extension.CUDAExtension(
            "vila_mc.kernels.libvila_mc_cuda",
            sources("cuda", ".cu"),
            define_macros=[*DEFINES, ("USE_CUDA", None)],
            depends=headers(),
            extra_compile_args={"cxx": ["-O3"], "nvcc": ["-O3", *GPUS]},
            py_limited_api=True,
        )
        extensions.append(cuda)
    build = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True, use_ninja=False)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": build}}


setup(**libraries())

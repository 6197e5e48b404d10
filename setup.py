"""Builds the native operations in csrc/ where that is possible. The rest stands in pyproject.toml.

Two libraries of torch's stable ABI, free of Python's: csrc/cpu wherever there is a C++ compiler,
csrc/cuda where there is an NVIDIA driver and nvcc. With the first comes csrc/text, a C library.
VILA_MC_BUILD_CPU and VILA_MC_BUILD_CUDA overrule that: 0 leaves a library out, 1 fails where it
cannot be built. Without a library vila_mc uses plain torch. docs/kernels.md says more.
"""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

TORCH_TARGET = "0x020d000000000000"
"""The oldest torch that the libraries run on: 2.13, as in pyproject.toml."""

DEFINES = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
WIDE_VECTORS = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def wanted(name: str, possible: bool, needs: str) -> bool:
    """Whether to build a library: what VILA_MC_BUILD_<name> says, else whether it is possible."""
    variable = f"VILA_MC_BUILD_{name}"
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        sys.exit(f"error: {variable}={choice} is not allowed; 0 leaves it out, 1 insists on it.")
    if choice == "1" and not possible:
        sys.exit(f"error: {variable}=1, but {needs} is missing. Install it or set {variable}=0.")
    if not possible:
        print(f"vila_mc: {name} library left out, there is no {needs}; plain torch does its work")
    return possible and choice != "0"


def sources(folder: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob("*.c*") if path.suffix != ".cuh")


def libraries() -> dict[str, Any]:
    """What setuptools needs to build; nothing without torch, as under pip's build isolation."""
    try:
        from torch.utils import cpp_extension
    except ImportError:
        wanted("CPU", False, "torch at build time (pip install --no-build-isolation)")
        return {}
    # As system headers torch's own are free to warn.
    system = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    extensions = []
    compiler = shutil.which(os.environ.get("CXX", "c++").split()[0])
    if wanted("CPU", compiler is not None, "C++ compiler"):
        extensions.append(
            cpp_extension.CppExtension(
                "vila_mc.kernels.libvila_mc_cpu",
                ["csrc/ops.cpp", *sources("cpu")],
                define_macros=DEFINES,
                extra_compile_args=[
                    "-O3",
                    "-fopenmp-simd",
                    "-fvisibility=hidden",
                    *WARNINGS,
                    *system,
                ],
                py_limited_api=True,
            )
        )
        extensions.append(
            Extension(
                "vila_mc.kernels.libvila_mc_text",
                sources("text"),
                extra_compile_args=["-O3", "-std=c++17", "-fvisibility=hidden", *WARNINGS],
                py_limited_api=True,
            )
        )
    build = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True, use_ninja=False)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": build}}


setup(options={"bdist_wheel": {"py_limited_api": "cp312"}}, **libraries())

"""Builds the native code in csrc/. Everything else is declared in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))

setup(
    ext_modules=[Pybind11Extension("vila_mc._native", SOURCES, cxx_std=17)] if SOURCES else [],
    cmdclass={"build_ext": build_ext},
)

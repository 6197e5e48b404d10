"""tools/setup_venv.sh in an environment that exists: what it installs, and that torch stays.

A real, empty environment with stand-ins: packages that are nothing but their metadata, and a pip
that notes what it is asked.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packaging
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CONTAINER_TORCH = "2.11.0a0+eb65b36914.nv26.2"
PIP = """
import json, os, pathlib, sys
site = pathlib.Path(__file__).parents[1]
arguments = sys.argv[1:]
constraints = open(arguments[arguments.index("-c") + 1]).read() if "-c" in arguments else ""
names = ("CUDA_HOME", "CPATH", "NVTE_FRAMEWORK")
call = dict(arguments=arguments, constraints=constraints, **{n: os.environ.get(n) for n in names})
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(call) + "\\n")
if os.environ.get("PIP_FAILS") in ("1", *arguments):
    sys.exit("no network")
if "--target" in arguments:
    target = pathlib.Path(arguments[arguments.index("--target") + 1])
    (target / "transformer_engine").mkdir(parents=True)
if "-e" in arguments:
    (site / "vila_mc.pth").write_text(os.getcwd())
    (pathlib.Path.cwd() / "vila_mc/kernels/libvila_mc_cpu.so").touch()
"""
SETUP = """
import pathlib, sys
pathlib.Path("vila_mc/kernels/libvila_mc_cpu.so").touch()
"""


@dataclass
class Place:
    """A checkout, an environment beside it, and what its pip was asked."""

    checkout: Path
    site: Path
    environment: dict[str, str]

    def has(self, name: str, version: str) -> None:
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    @property
    def wheel(self) -> Path:
        """Where emulation looks for Transformer Engine's."""
        return self.site.parents[2] / "transformer_engine_wheel"

    def has_all(self) -> None:
        """Whatever is wanted, in a version that will do."""
        (self.wheel / "transformer_engine").mkdir(parents=True)
        said = tomllib.loads((self.checkout / "pyproject.toml").read_text())
        extras = said["project"]["optional-dependencies"]
        lines = [*said["build-system"]["requires"], *said["project"]["dependencies"]]
        wanted = {}
        for line in [*lines, *extras["hf"], *extras["examples"]]:
            requirement = Requirement(line)
            lowest = [one.version for one in requirement.specifier if one.operator == ">="]
            wanted[requirement.name] = lowest[0]
        for name, version in wanted.items():
            if name != "torch":
                self.has(name, version)

    def set_up(self, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "tools/setup_venv.sh", *options],
            cwd=self.checkout,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[dict[str, Any]]:
        file = Path(self.environment["CALLS"])
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    checkout = tmp_path / "checkout"
    for folder in ("tools", "csrc", "vila_mc/kernels"):
        (checkout / folder).mkdir(parents=True)
    shutil.copy(ROOT / "tools/setup_venv.sh", checkout / "tools")
    shutil.copytree(ROOT / "tools/setup", checkout / "tools/setup")
    for name in ("pyproject.toml", "transformer_engine.lock"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "setup.py").write_text(SETUP)
    (checkout / "csrc/ops.cpp").touch()
    (checkout / "vila_mc/__init__.py").touch()
    python = Path(sys._base_executable)  # type: ignore[attr-defined]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    site = tmp_path / f"env/lib/python{version}/site-packages"
    site.mkdir(parents=True)
    (tmp_path / "env/pyvenv.cfg").write_text(f"home = {python.parent}\nversion = {version}\n")
    (tmp_path / "env/bin").mkdir()
    (tmp_path / "env/bin/python").symlink_to(python)
    (tmp_path / "env/bin/python3").symlink_to("python")
    (site / "packaging").symlink_to(Path(packaging.__file__).parent)
    (site / "pip").mkdir()
    (site / "pip/__init__.py").touch()
    (site / "pip/__main__.py").write_text(PIP)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (bin_ / "nvidia-smi").chmod(0o755)
    environment = {
        "PATH": f"{bin_}:/usr/bin:/bin",
        "VILA_MC_PYTHON": str(tmp_path / "env/bin/python"),
        "CALLS": str(tmp_path / "calls"),
    }
    return Place(checkout, site, environment)


def test_what_is_missing_is_installed_and_torch_is_left_alone(place: Place) -> None:
    place.has("torch", CONTAINER_TORCH)
    place.has("numpy", "1.26.4")  # too old
    place.has("pillow", "12.0.0")
    done = place.set_up()
    assert done.returncode == 0, done.stderr
    missing, itself, wheel = place.calls()
    assert missing["constraints"] == f"torch=={CONTAINER_TORCH}\n"
    asked = {Requirement(line).name for line in missing["arguments"] if ">=" in line}
    assert {"numpy", "megatron-core", "transformers", "setuptools", "scikit-learn"} <= asked
    assert not {"torch", "pillow", "ruff", "transformer-engine"} & asked
    assert itself["arguments"][-2:] == ["-e", "."]
    assert {"--no-deps", "--no-build-isolation"} <= set(itself["arguments"])
    assert wheel["arguments"][-3:] == ["--require-hashes", "-r", "transformer_engine.lock"]
    assert ["--target", str(place.wheel)] == wheel["arguments"][-5:-3]
    assert "--no-deps" in wheel["arguments"]
    assert not (place.checkout / ".venv").exists()


def test_what_emulation_executes_is_not_fetched_twice_nor_needed(place: Place) -> None:
    place.has("torch", "2.14.1")
    place.has_all()
    shutil.rmtree(place.wheel)
    done = place.set_up(PIP_FAILS="--target")
    assert done.returncode == 0, done.stderr
    assert f"was not fetched into {place.wheel}" in done.stdout.replace("\n", " ")
    (place.site / "vila_mc.pth").unlink()
    named = place.set_up(VILA_MC_TE_FOLDER="/elsewhere")
    assert (named.returncode, named.stderr) == (0, "")
    assert [call["arguments"][-1] for call in place.calls()] == [
        ".",
        "transformer_engine.lock",
        ".",
    ]


def test_nothing_is_done_where_nothing_is_missing(place: Place) -> None:
    place.has("torch", "2.14.1+cu130")
    place.has_all()
    assert place.set_up().returncode == 0
    (itself,) = place.calls()
    assert itself["arguments"][-2:] == ["-e", "."]
    again = place.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(place.calls()) == 1


def test_libraries_older_than_their_sources_are_built_in_place(place: Place) -> None:
    place.has("torch", "2.11.0")
    place.has_all()
    library = place.checkout / "vila_mc/kernels/libvila_mc_cpu.so"
    library.touch()
    os.utime(library, (1, 1))
    done = place.set_up(PYTHONPATH=str(place.checkout))
    assert done.returncode == 0, done.stderr
    assert "Building csrc" in done.stdout
    assert library.stat().st_mtime > 1
    assert place.calls() == []


@pytest.mark.parametrize(
    ("torch", "complaint"),
    [
        (None, "has no torch"),
        ("2.9.0a0+nv", "has torch 2.9.0a0+nv; vila_mc wants torch "),
        ("2.15.0", "has torch 2.15.0; vila_mc wants torch "),
    ],
)
def test_another_torch_is_refused_and_not_replaced(
    torch: str | None, complaint: str, place: Place
) -> None:
    if torch is not None:
        place.has("torch", torch)
    done = place.set_up()
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert place.calls() == []


def test_an_environment_that_cannot_be_completed_is_said(place: Place) -> None:
    place.has("torch", "2.11.0")
    done = place.set_up(PIP_FAILS="1")
    assert done.returncode == 2
    assert "no network" in done.stderr
    assert "--system-site-packages" in done.stderr


def test_an_interpreter_that_is_none_is_refused(place: Place) -> None:
    done = place.set_up(VILA_MC_PYTHON="/none/python")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "VILA_MC_PYTHON=/none/python is not a working Python" in done.stderr


def test_a_container_of_nvidia_is_used_as_it_is(place: Place) -> None:
    python = place.environment.pop("VILA_MC_PYTHON")
    place.has("torch", CONTAINER_TORCH)
    place.has("transformer-engine-torch", "2.14.1")  # whose wheel is then of no use
    place.environment["PATH"] = f"{Path(python).parent}:{place.environment['PATH']}"
    done = place.set_up(NVIDIA_PYTORCH_VERSION="26.02")
    assert done.returncode == 0, done.stderr
    assert len(place.calls()) == 2


def _with_torch(place: Place, cuda: str | None) -> None:
    place.has("torch", "2.11.0")
    place.has_all()
    (place.site / "torch").mkdir()
    (place.site / "torch/__init__.py").write_text(
        f"__version__ = '2.11.0'\nclass version:\n    cuda = {cuda!r}\n"
    )
    (place.site / "nvidia/cudnn/include").mkdir(parents=True)


def _toolkit(folder: Path, release: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin/nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.48'\n")
    nvcc.chmod(0o755)
    return folder


def test_transformer_engine_is_compiled_with_the_toolkit_of_torch(
    place: Place, tmp_path: Path
) -> None:
    _with_torch(place, "13.0")
    home = _toolkit(tmp_path / "cuda", "13.1")
    done = place.set_up("--with-te", CUDA_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert f"compiled with {home}/bin/nvcc" in done.stdout
    assert "minutes" in done.stdout
    call = place.calls()[-1]
    assert call["CUDA_HOME"] == str(home)
    assert call["CPATH"] == f"{home}/include:{place.site}/nvidia/cudnn/include"
    assert call["NVTE_FRAMEWORK"] == "pytorch"
    assert call["constraints"] == "torch==2.11.0\n"
    assert call["arguments"][-1].startswith("transformer-engine[pytorch]")
    place.has("transformer-engine", "2.20.2")
    place.has("transformer-engine-torch", "2.20.2")
    count = len(place.calls())
    again = place.set_up("--with-te", CUDA_HOME=str(home))
    assert (again.returncode, again.stdout) == (0, "Transformer Engine is there.\n")
    assert len(place.calls()) == count


def test_the_toolkit_of_torch_is_found_by_itself(place: Place, tmp_path: Path) -> None:
    """On the PATH, through a link, where CUDA_HOME is another's."""
    _with_torch(place, "77.0")
    home, other = (_toolkit(tmp_path / name, f"{name}.1") for name in ("77", "76"))
    (tmp_path / "bin/nvcc").symlink_to(home / "bin/nvcc")
    done = place.set_up("--with-te", CUDA_HOME=str(other))
    assert done.returncode == 0, done.stderr
    assert place.calls()[-1]["CUDA_HOME"] == str(home)


@pytest.mark.parametrize(
    ("cuda", "complaint"), [(None, "built for CUDA"), ("99.0", "nvcc of CUDA 99")]
)
def test_transformer_engine_is_refused_without_what_it_needs(
    cuda: str | None, complaint: str, place: Place, tmp_path: Path
) -> None:
    _with_torch(place, cuda)
    done = place.set_up("--with-te", CUDA_HOME=str(_toolkit(tmp_path / "cuda", "13.1")))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_option_is_refused(place: Place) -> None:
    done = place.set_up("--with-apex")
    assert done.returncode == 2
    assert done.stderr == "error: --with-apex is not an option; there is --with-te.\n"

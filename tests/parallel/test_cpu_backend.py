"""The CPU backend is a guest: it comes when asked, and leaves everything as it was."""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from megatron.core.tensor_parallel import random as megatron_random

from vila_mc.errors import SetupError
from vila_mc.parallel import cpu_backend, megatron_patches
from vila_mc.parallel.cpu_backend import undo_cpu_backend, use_cpu_backend

IMPORT_EVERYTHING = """
import importlib, pkgutil, torch
before = {id(owner): dict(vars(owner)) for owner in (torch.cuda, torch.Tensor)}
import vila_mc
for module in pkgutil.walk_packages(vila_mc.__path__, "vila_mc."):
    # What torch loads, what transformers loads, and what is there beside Transformer Engine alone.
    elsewhere = (".lib", "remote_code", "emulation.extension", "emulation.te_patches")
    if not any(name in module.name for name in elsewhere):
        importlib.import_module(module.name)
assert not torch.cuda.is_initialized()
import sys
assert "megatron.core" in sys.modules, "the test imports too little"
for owner in (torch.cuda, torch.Tensor):
    names = [
        name for name, value in before[id(owner)].items() if vars(owner).get(name) is not value
    ]
    assert not names, f"{owner} has other {names}"
assert not torch.distributed.is_initialized()
"""


def test_importing_changes_nothing() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stderr == ""


def test_importing_the_package_needs_no_torch() -> None:
    program = "import sys, vila_mc; assert not {'torch', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture(autouse=True)
def inactive() -> Iterator[None]:
    """Every test starts and ends without the backend."""
    undo_cpu_backend()
    yield
    undo_cpu_backend()


def _everything_touched() -> dict[tuple[str, str], object]:
    """(owner, name) -> object, for every attribute that could be replaced."""
    owners = [torch, torch.cuda, torch.Tensor, megatron_random, torch.distributed]
    owners += [
        importlib.import_module(f"megatron.core.{name}")
        for name in megatron_patches.LITERAL_CUDA_MODULES
    ]
    return {
        (owner.__name__, name): value for owner in owners for name, value in vars(owner).items()
    }


def _differences(
    before: dict[tuple[str, str], object], after: dict[tuple[str, str], object]
) -> list[tuple[str, str]]:
    return [name for name in before | after if before.get(name) is not after.get(name)]


def test_undo_restores_every_attribute() -> None:
    before = _everything_touched()
    use_cpu_backend()
    replaced = _differences(before, _everything_touched())
    assert ("torch.cuda", "current_device") in replaced
    assert ("Tensor", "cuda") in replaced
    assert ("Tensor", "type") in replaced
    assert ("megatron.core.tensor_parallel.random", "_get_cuda_rng_state") in replaced
    assert ("megatron.core.pipeline_parallel.schedules", "torch") in replaced
    assert not any(owner in ("torch", "torch.distributed") for owner, _ in replaced)
    undo_cpu_backend()
    assert _differences(before, _everything_touched()) == []


def test_twice_is_once() -> None:
    before = _everything_touched()
    use_cpu_backend()
    once = _everything_touched()
    use_cpu_backend()
    assert _differences(once, _everything_touched()) == []
    assert _differences(before, once)
    undo_cpu_backend()
    undo_cpu_backend()
    assert _differences(before, _everything_touched()) == []


def test_a_failure_half_way_leaves_nothing_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _everything_touched()
    patch = megatron_patches.CPU_BACKEND
    monkeypatch.setattr(
        cpu_backend,
        "CPU_BACKEND",
        dataclasses.replace(patch, targets=(*patch.targets, "megatron.core.no.such:torch")),
    )
    with pytest.raises(ModuleNotFoundError):
        use_cpu_backend()
    monkeypatch.undo()
    assert _differences(before, _everything_touched()) == []


def test_refused_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = _everything_touched()
    with pytest.raises(SetupError, match="this process has a GPU"):
        use_cpu_backend()
    assert _differences(before, _everything_touched()) == []


def test_what_megatron_asks_of_cuda_is_answered_for_the_cpu() -> None:
    use_cpu_backend()
    schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    made = schedules.torch.zeros(3, device="cuda", dtype=torch.int)
    assert made.device.type == "cpu"
    assert made.dtype == torch.int
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    assert torch.cuda.current_device() == torch.device("cpu")  # type: ignore[comparison-overlap]
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
        torch.cuda.Event(enable_timing=True).record()
    torch.cuda.synchronize()
    assert not torch.cuda.is_initialized()

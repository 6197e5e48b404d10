"""When emulation is refused, and what it replaces."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.emulated import Emulated
from vila_mc.emulation import install as emulation
from vila_mc.emulation.te_patches import TE_COLLECTIVES, TE_GLOBALS, TE_IMPORT, TE_TENSORS
from vila_mc.errors import SetupError


def test_it_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SetupError, match="has a GPU"):
        emulation.install()


def test_it_is_refused_beside_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "version", lambda name: "2.20.2")
    with pytest.raises(SetupError, match=r"real one \(transformer_engine_torch"):
        emulation.install()


def test_it_is_refused_without_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(emulation.WHEEL_FOLDER, str(tmp_path))
    with pytest.raises(SetupError, match=r"Run bash tools/setup_venv\.sh"):
        emulation.wheel_folder()


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(SetupError, match=r"\(7, 0\) is not emulated. Choose of \(8, 0\) \(A100\)"):
        emulation.install((7, 0))


def test_it_is_refused_after_megatron_has_been_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core", torch)
    with pytest.raises(SetupError, match=r"megatron\.core has been imported without it"):
        emulation.install()


def test_nothing_is_on_the_path_without_it() -> None:
    """Not even where the wheel is there: Megatron-Core would take it for a whole one."""
    program = (
        "import importlib.util, vila_mc.emulation.install as i\n"
        "i.wheel_folder()\n"
        "assert importlib.util.find_spec('transformer_engine') is None"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_second_gpu_is_refused(h100: Emulated) -> None:
    assert "emulates H100, and cannot emulate B200" in h100("tests.te.installed:second_gpu")


def test_every_target_was_there(h100: Emulated) -> None:
    entries = (TE_COLLECTIVES, TE_IMPORT, TE_TENSORS)
    targets = [target for entry in entries for target in entry.targets]
    names = [target.partition(":")[2] for target in TE_GLOBALS.targets]
    assert h100("tests.te.installed:missing", targets, names) == []


@pytest.mark.parametrize("name", ["fused_attn_fwd", "te_general_grouped_gemm", "moe_permute_fwd"])
def test_what_is_not_emulated_says_so(name: str, h100: Emulated) -> None:
    said = h100("tests.te.installed:refusal", name)
    assert said == f"transformer_engine_torch.{name} is not emulated on a CPU"


def test_capabilities_decide_which_recipes_there_are(h100: Emulated, b200: Emulated) -> None:
    assert h100("tests.te.installed:available") == {"fp8": True, "blockwise": True, "mxfp8": False}
    assert b200("tests.te.installed:available")["mxfp8"]

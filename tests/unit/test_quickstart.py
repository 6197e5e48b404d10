"""The quickstart's recipes train in every precision that it offers."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from vila_mc.config.load import load_run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> Iterator[Any]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("quickstart_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("gpus", [0, 4])
def test_every_precision_fits_every_phase(
    gpus: int, quickstart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "num_gpus", lambda: gpus)
    for precision in get_args(quickstart.Precision):
        words = quickstart.precision_options(precision)
        given = dict(zip(words[::2], words[1::2], strict=True))
        given = {name.removeprefix("--"): value for name, value in given.items()}
        given |= {"parallel.tensor": "2", "parallel.pipeline": "2"}
        is_fp8 = precision not in ("fp32", "bf16")
        for phase in quickstart.PHASES:
            recipes = [quickstart.RECIPES / f"{name}.yaml" for name in ("model", phase)]
            run = load_run(recipes, given)
            run.check_world(4)
            assert run.train.precision == ("bf16" if is_fp8 else precision)
            assert run.train.fp8.recipe == (precision if is_fp8 else "none")
            assert run.train.fp8.emulation == (is_fp8 and not gpus)

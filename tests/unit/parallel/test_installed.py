"""Optional packages are known by what they hold."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from vila_mc.errors import SetupError
from vila_mc.model.layer_specs import layer_kind, layers_line
from vila_mc.parallel import installed


def _package(folder: Path, name: str, *files: str) -> None:
    (folder / name).mkdir()
    for file in ("__init__.py", *files):
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).touch()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that this process finds first."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("apex", "transformer_engine", "transformer_engine_torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_nothing_is_refused_where_nothing_is_installed() -> None:
    installed.refuse_what_breaks_megatron()
    assert installed.optional_packages() == "Transformer Engine absent, NVIDIA Apex absent"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("apex", "apex installed here is not NVIDIA Apex.* pip uninstall apex"),
        ("transformer_engine", "has no compiled part for torch.* pip uninstall transformer_engine"),
    ],
)
def test_what_breaks_megatron_is_refused(package: str, message: str, site: Path) -> None:
    _package(site, package)
    with pytest.raises(SetupError, match=message):
        installed.refuse_what_breaks_megatron()


def test_a_compiled_transformer_engine_is_not_refused(site: Path) -> None:
    _package(site, "transformer_engine")
    (site / "transformer_engine_torch.cpython-312-x86_64-linux-gnu.so").touch()
    installed.refuse_what_breaks_megatron()


def test_apex_is_what_its_kernels_make_it(site: Path) -> None:
    _package(site, "apex", "multi_tensor_apply/__init__.py")
    installed.refuse_what_breaks_megatron()
    assert not installed.has_apex_optimizer(), "without kernels it can do nothing"
    (site / "amp_C.py").touch()
    importlib.invalidate_caches()
    assert installed.has_apex_optimizer()
    assert not installed.has_apex_weight_gradient()
    assert "NVIDIA Apex with optimizer" in installed.optional_packages()
    (site / "fused_weight_gradient_mlp_cuda.py").touch()
    importlib.invalidate_caches()
    assert installed.has_apex_weight_gradient()


@pytest.mark.parametrize("name", ["layers", "vision_layers"])
def test_layers_that_are_not_here_are_refused(name: str) -> None:
    config = tiny_run(train={name: "transformer_engine"})
    with pytest.raises(SetupError, match=f"train.{name} is transformer_engine, which is not inst"):
        layer_kind(config, "vision")


def test_without_a_gpu_layers_are_torchs() -> None:
    assert layers_line(tiny_run()) == "layers torch"
    assert layers_line(tiny_run(train={"vision_layers": "torch"})) == "layers torch"


@pytest.mark.parametrize(
    ("has_triton", "commands", "named", "expected"),
    [
        (True, ("gcc",), None, True),
        (True, ("clang",), None, True),
        (True, (), None, False),
        (True, ("gcc",), "icx", False),
        (True, ("icx",), "icx", True),
        (False, ("gcc",), None, False),
    ],
)
def test_compiling_for_a_gpu_takes_triton_and_a_compiler(
    has_triton: bool,
    commands: tuple[str, ...],
    named: str | None,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "Python.h").touch()
    for command in commands:
        (tmp_path / command).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installed, "_is_here", lambda name: has_triton)
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if named:
        monkeypatch.setenv("CC", named)
    assert installed.can_compile() == expected
    (tmp_path / "Python.h").unlink()
    assert not installed.can_compile()

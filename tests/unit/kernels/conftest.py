"""The two implementations of every operation, and inputs for them."""

from types import ModuleType

import pytest
import torch

from vila_mc.kernels import native, reference


def native_or_skip() -> ModuleType:
    if "cpu" not in native.loaded():
        pytest.skip("csrc/ is not built; docs/kernels.md says how")
    return torch.ops.vila_mc


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Makes ``kernels.ops`` compute with one implementation, and gives that."""
    if request.param == "native":
        return native_or_skip()
    monkeypatch.setattr(native, "loaded", lambda: frozenset())
    return reference


@pytest.fixture
def built() -> ModuleType:
    """The native operations; skips without them."""
    return native_or_skip()

"""One emulator for all tests of the kernels: its builds take seconds each."""

import pytest

from tests.support.emulation import COMPILER, Emulator


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """The emulated kernels; skips where nothing can compile them."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler (g++, or the one that CXX names)")
    return Emulator(tmp_path_factory.mktemp("emulator"))

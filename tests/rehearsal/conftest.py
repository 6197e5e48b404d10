"""The compiled answer for the driver, once for all rehearsals."""

from pathlib import Path

import pytest

from vila_mc.rehearsal.device import compile_guard


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that ``fake_device`` loads."""
    return compile_guard(tmp_path_factory.mktemp("guard"))

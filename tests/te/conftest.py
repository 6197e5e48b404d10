"""Processes with an emulated Transformer Engine, which all tests here share.

Without its wheel they fail, and name the command that fetches it: nothing here is skipped.
"""

from collections.abc import Iterator

import pytest

from tests.parity.conftest import seed_checkpoint  # noqa: F401
from tests.support.emulated import B200, H100, Emulated, emulated


@pytest.fixture(scope="session")
def h100() -> Iterator[Emulated]:
    """Of an emulated H100."""
    with emulated(H100) as calls:
        yield calls


@pytest.fixture(scope="session")
def b200() -> Iterator[Emulated]:
    """Of an emulated B200."""
    with emulated(B200) as calls:
        yield calls

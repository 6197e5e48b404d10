"""One browser for all tests of pages.

It ends with the last of them: its driver keeps an event loop, which other tests must not find.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import missing, started_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """A browser process; tests that ask for it are skipped where there is none."""
    if reason := missing():
        pytest.skip(reason)
    with started_browser() as started:
        yield started

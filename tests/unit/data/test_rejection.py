"""How many records may be bad, and what is said about them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.errors import ConfigError

Write = Callable[..., Path]


def test_hopeless_run_stops_early() -> None:
    limit = RejectionLimit.parse("1%")
    assert not limit.is_exceeded(900, 999, is_end=False)
    assert limit.is_exceeded(501, 1000, is_end=False)
    assert not limit.is_exceeded(400, 1000, is_end=False)


@pytest.mark.parametrize("text", ["-1", "x", "101%", "-1%", "%", "1.5", "nan%"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="max_rejected is"):
        RejectionLimit.parse(text)

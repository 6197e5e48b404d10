"""What is refused where a run starts: before any rank, and on ranks of another launcher."""

import re
from typing import Any

import pytest

from vila_mc.config.load import load_run
from vila_mc.errors import ConfigError
from vila_mc.train.faults import StopRequest
from vila_mc.train.preflight import check_before_launch
from vila_mc.train.rank import _train


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"load_parts": ["vision"]}, "train.load_parts is set, but train.load is none, so nothing"),
        ({"interpolate_positions": True}, "train.interpolate_positions is set, but train.load is"),
        (
            {"interpolate_positions": True, "load": "x", "load_parts": ["connector", "language"]},
            "but train.load_parts [connector, language] loads none. Add vision to it, or leave",
        ),
        ({"load_parts": ["vision"], "load": "x"}, None),
        ({"load_parts": ["language", "connector", "vision"]}, None),
        ({"interpolate_positions": True, "load": "x", "load_parts": ["vision"]}, None),
    ],
    ids=str,
)
def test_what_loads_nothing_is_refused_where_a_run_starts(
    train: dict[str, Any], message: str | None
) -> None:
    config = load_run([], {f"train.{name}": value for name, value in train.items()})
    if message is None:
        config.train.check_load()
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_before_launch(config, 1)
    with pytest.raises(ConfigError, match=re.escape(message)):
        _train(config, StopRequest())

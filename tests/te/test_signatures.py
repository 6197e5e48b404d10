"""Emulated functions take what the real ones take, as recorded from their source package."""

import re
from pathlib import Path

from tests.support.emulated import Emulated
from tests.te.signatures import recorded

LOCK = Path(__file__).parents[2] / "transformer_engine.lock"
OF_THE_CORE = {"device_supports_multicast", "get_stream_priority_range", "ubuf_built_with_mpi"}
"""Bound, or declared, in headers of the compiled core, which the package does not have."""


def test_the_record_is_of_the_release_that_is_executed() -> None:
    pinned = re.search(r"^transformer-engine==(\S+)", LOCK.read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert recorded()["version"] == pinned[1]


def test_every_emulated_function_is_one_of_the_extension(h100: Emulated) -> None:
    emulated = h100("tests.te.installed:signatures")
    assert set(emulated) - set(recorded()["functions"]) == OF_THE_CORE
    assert len(emulated) > 60


def test_arguments_are_those_of_the_extension(h100: Emulated) -> None:
    real = recorded()["functions"]
    for name, arguments in h100("tests.te.installed:signatures").items():
        if name in OF_THE_CORE:
            continue
        wanted = real[name]["arguments"]
        same = arguments == wanted if real[name]["is_named"] else len(arguments) == len(wanted)
        assert same, (name, arguments, wanted)

"""Every format is one module with one object, and the registry knows all of them."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.unit.convert.independent_vila import tiny_model
from vila_mc.config.connectors import CONNECTORS
from vila_mc.convert import formats
from vila_mc.convert.formats.registry import FORMATS, find_format
from vila_mc.convert.names import tables
from vila_mc.errors import CheckpointError


def test_every_module_with_a_format_is_in_the_registry() -> None:
    names = [path.stem for path in Path(formats.__file__).parent.glob("*.py")]
    modules = [import_module(f"{formats.__name__}.{name}") for name in names if name != "__init__"]
    found = {module.FORMAT.name for module in modules if hasattr(module, "FORMAT")}
    assert found == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_its_name_says(name: str) -> None:
    format = find_format(name)
    assert format.name == format.naming.format == name
    assert format.sees_images == bool(format.naming.connectors)
    for kind in CONNECTORS:
        if kind in format.naming.connectors:
            assert len(tables(tiny_model(kind), format.naming)) == 3
        else:
            title = re.escape(tiny_model(kind).connector.title())
            with pytest.raises(CheckpointError, match=f"{name} cannot hold the connector {title}"):
                tables(tiny_model(kind), format.naming)


def test_other_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"no format gguf; choose hf-vila, .*llm"):
        find_format("gguf")

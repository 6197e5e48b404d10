"""Damaged JSON of model directories is read or refused in one line; a benchmark tries 20,000."""

from pathlib import Path

import pytest

from tests.support.foreign_fuzz import try_door
from tests.support.foreign_models import MODEL_DOORS, make_models

_COUNT = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.mark.parametrize("name", MODEL_DOORS)
def test_damaged_json_is_read_or_refused(name: str, models: Path) -> None:
    found = try_door(MODEL_DOORS[name], models, _COUNT, seed=2)
    assert found["read"] + found["refused"] == _COUNT, found
    assert found["refused"]

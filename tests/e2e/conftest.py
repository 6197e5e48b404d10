"""One dataset, recipe and unbroken run for all tests of whole runs."""

from pathlib import Path

import pytest

from tests.support.launching import Finished, train, write_recipe
from tests.support.tiny_data import write_dataset

LAYOUT = ("--ranks", 2, "--parallel.pipeline", 2)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything but train.output."""
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder / "recipe.yaml", *write_dataset(folder))


@pytest.fixture(scope="session")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """What a run that nothing disturbs prints, and its output."""
    output = tmp_path_factory.mktemp("unbroken")
    return train("--config", recipe, *LAYOUT, "--train.output", output), output

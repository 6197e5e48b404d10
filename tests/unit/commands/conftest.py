"""A model to ask in every form, and what a command prints."""

from collections.abc import Callable

import pytest

from tests.support.askable import Askable, make_askable


@pytest.fixture(scope="module")
def askable(tmp_path_factory: pytest.TempPathFactory) -> Askable:
    return make_askable(tmp_path_factory.mktemp("askable"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a command prints on its output, line by line."""

    def run(main: Callable[..., int], *arguments: object) -> list[str]:
        capsys.readouterr()
        assert main([*map(str, arguments)], "tool") == 0
        return capsys.readouterr().out.splitlines()

    return run

"""Tensor-parallel ranks answer as one rank does: tokens, beams and likelihoods."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.generation_ranks import CHOICES, answers
from tests.support.askable import make_askable
from tests.support.ranks import run_ranks

MODELS = ("run", "hf-vila")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """By model: the answers of one rank, and of each of two; one start for all."""
    folder = tmp_path_factory.mktemp("askable")
    askable = make_askable(folder, ["hf-vila"])
    meet = [folder / "one", folder / "two"]
    for place in meet:
        place.mkdir()
    models = [askable.model(kind) for kind in MODELS]
    images = [Path(askable.image(name)) for name in ("red", "blue")]
    one = answers(models, images, 1, meet[0])
    first, second = run_ranks(2, answers, models, images, 2, meet[1])
    return [list(each) for each in zip(one, first, second, strict=True)]


@pytest.mark.parametrize("model", range(len(MODELS)), ids=MODELS)
@pytest.mark.parametrize("how", CHOICES)
def test_two_ranks_give_the_tokens_of_one(
    how: str, model: int, found: list[list[dict[str, Any]]]
) -> None:
    expected, *ranks = (each[how] for each in found[model])
    assert ranks == [expected, expected]
    assert len(set(expected)) > 2  # or it would prove nothing
    assert len(set(expected[0])) > 3


@pytest.mark.parametrize("model", range(len(MODELS)), ids=MODELS)
def test_two_ranks_find_continuations_as_likely_as_one(
    model: int, found: list[list[dict[str, Any]]]
) -> None:
    expected, first, second = (each["likelihoods"] for each in found[model])
    assert first == second
    for got, one in zip(first, expected, strict=True):
        assert got == one | {"log_likelihood": pytest.approx(one["log_likelihood"], rel=1e-5)}
    assert [one["is_greedy"] for one in expected] == [False, False, True]


@pytest.mark.parametrize("model", range(len(MODELS)), ids=MODELS)
def test_a_rank_holds_as_many_bytes_as_are_planned(
    model: int, found: list[list[dict[str, Any]]]
) -> None:
    whole, *shares = (each["bytes"] for each in found[model])
    for held, planned in (whole, *shares):
        assert held == planned
    assert all(0.5 * whole[0] < held < 0.6 * whole[0] for held, _ in shares)


@pytest.mark.parametrize("model", range(len(MODELS)), ids=MODELS)
def test_bf16_takes_half_the_bytes_and_is_near(
    model: int, found: list[list[dict[str, Any]]]
) -> None:
    expected = [one["log_likelihood"] for one in found[model][0]["likelihoods"][:2]]
    for each in found[model]:
        assert each["bf16"] == pytest.approx(expected, rel=2e-2)
        assert each["bf16"] != expected
        assert 2 * each["bytes in bf16"] == each["bytes"][0]

"""Every family of the emulated extension computes what it should, and a fault in it is noticed."""

import pytest

from tests.support.emulated import Emulated
from tests.te.faults import FAULTS, ON_BLACKWELL
from tests.te.names import CHECKS, CHECKS_ON_BLACKWELL


@pytest.fixture(scope="module")
def fractions(h100: Emulated) -> dict[str, float]:
    """Of its tolerance, what each check needs."""
    found: dict[str, float] = h100("tests.te.checks:measured", CHECKS)
    return found


@pytest.fixture(scope="module")
def faulty(h100: Emulated) -> dict[str, float]:
    """The same with each fault planted."""
    found: dict[str, float] = h100("tests.te.faults:noticed", list(FAULTS))
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_a_family_computes_what_it_should(name: str, fractions: dict[str, float]) -> None:
    assert fractions[name] < 1


@pytest.mark.parametrize("name", CHECKS_ON_BLACKWELL)
def test_a_family_of_blackwell_computes_what_it_should(name: str, b200: Emulated) -> None:
    assert b200("tests.te.checks:measured", [name])[name] < 1


@pytest.mark.parametrize("name", ON_BLACKWELL)
def test_a_fault_on_a_blackwell_is_noticed(name: str, b200: Emulated) -> None:
    assert b200("tests.te.faults:noticed", [name])[name] > 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name: str, faulty: dict[str, float]) -> None:
    assert faulty[name] > 1

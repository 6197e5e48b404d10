"""What the data can teach is known from its manifests before anything is learnt."""

from types import SimpleNamespace

import pytest

from tests.support.tiny import tiny_run
from vila_mc.errors import DataError
from vila_mc.train.learning import what_will_not_learn

TEXT, PICTURES = SimpleNamespace(images=0), SimpleNamespace(images=3)


@pytest.mark.parametrize(
    ("trainable", "datasets", "parts"),
    [
        (["language"], [TEXT], []),
        (["connector"], [TEXT, PICTURES], []),
        (["connector", "language"], [TEXT, TEXT], ["connector"]),
        (["vision", "connector", "language"], [TEXT], ["vision", "connector"]),
    ],
)
def test_a_line_for_each_idle_part(
    trainable: list[str], datasets: list[SimpleNamespace], parts: list[str]
) -> None:
    lines = what_will_not_learn(tiny_run(train={"trainable": trainable}), datasets)
    assert len(lines) == len(parts)
    assert all(f"so {part} of" in line for part, line in zip(parts, lines, strict=True))


@pytest.mark.parametrize("trainable", [["connector"], ["vision", "connector"]])
def test_nothing_at_all_is_refused(trainable: list[str]) -> None:
    with pytest.raises(DataError, match=r"an image, so train\.trainable .* learn nothing"):
        what_will_not_learn(tiny_run(train={"trainable": trainable}), [TEXT])

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


def test_adapters_learn_in_their_part_and_from_text_where_it_is_language() -> None:
    run = tiny_run(train={"trainable": ["connector"]}, lora={"rank": 2})
    (line,) = what_will_not_learn(run, [TEXT])
    assert "so connector of train.trainable [connector] with the adapters of lora learns" in line
    seeing = {"rank": 2, "targets": [], "vision_targets": ["fc1"]}
    with pytest.raises(DataError, match="would learn nothing"):
        what_will_not_learn(tiny_run(train={"trainable": []}, lora=seeing), [TEXT])


@pytest.mark.parametrize("trainable", [["connector"], ["vision", "connector"]])
def test_nothing_at_all_is_refused(trainable: list[str]) -> None:
    with pytest.raises(DataError, match=r"an image, so train\.trainable .* learn nothing"):
        what_will_not_learn(tiny_run(train={"trainable": trainable}), [TEXT])

"""Steps from epochs, and what is said of them."""

from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from tests.support.tiny_data import write_dataset
from vila_mc.config.train import DEFAULT_STEPS
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.train.passes import passes_line, seen_in_training, validation_line, with_steps


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))[1]  # 24 samples


@pytest.mark.parametrize(
    ("entry", "epochs", "steps", "line"),
    [
        ({}, 2.0, 5, "24 samples, 2.4 steps a pass, 2.1 passes"),
        ({"weight": 3}, 0.5, 2, "24 samples, 2.4 steps a pass, 0.8 passes"),
        ({"epochs": 2}, 5.0, 24, "48 samples, 4.8 steps a pass, 5 passes"),
    ],
)
def test_steps_from_epochs(
    prefix: Path, entry: dict[str, int], epochs: float, steps: int, line: str
) -> None:
    config = tiny_run(
        data={"blend": [{"path": str(prefix)} | entry]},
        train={"steps": DEFAULT_STEPS, "epochs": epochs, "global_batch": 10},
    )
    readers = [IndexedReader(prefix)]
    counted = with_steps(config, readers)
    assert (counted.train.steps, counted.train.epochs) == (steps, None)
    assert passes_line(counted, readers) == line
    assert with_steps(counted, readers) is counted


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("few"), 4)[1]


@pytest.mark.parametrize(
    ("weights", "packing", "line"),
    [
        (
            (1, 1),
            False,
            "15 steps of 10 samples: PREFIX 3.1 passes of 24 samples, FEW 18.8 passes of 4 samples",
        ),
        (
            (9, 1),
            False,
            "15 steps of 10 samples: PREFIX 5.6 passes of 24 samples, FEW 3.8 passes of 4 samples",
        ),
        ((1, 1), True, "15 steps of about "),
    ],
)
def test_how_often_weights_read_each_dataset_is_said(
    prefix: Path, few: Path, weights: tuple[int, int], packing: bool, line: str
) -> None:
    paths = (prefix, few)
    blend = [{"path": str(p), "weight": w} for p, w in zip(paths, weights, strict=True)]
    config = tiny_run(
        data={"blend": blend, "packing": packing}, train={"steps": 15, "global_batch": 10}
    )
    line = line.replace("PREFIX", str(prefix)).replace("FEW", str(few))
    assert passes_line(config, [IndexedReader(path) for path in paths]).startswith(line)


def test_the_samples_of_each_entry_by_epochs_are_said(prefix: Path, few: Path) -> None:
    blend = [{"path": str(prefix), "epochs": 0.5}, {"path": str(few), "epochs": 2}]
    config = tiny_run(data={"blend": blend}, train={"steps": 6, "global_batch": 10})
    line = f"20 samples ({prefix} 12, {few} 8), 2 steps a pass, 3 passes"
    assert passes_line(config, [IndexedReader(prefix), IndexedReader(few)]) == line


def test_what_is_validated_is_said(prefix: Path, few: Path) -> None:
    entries = [{"path": str(prefix), "epochs": 0.5}, {"path": str(few)}]
    config = tiny_run(data={"validation": entries}, train={"validate_every": 7})
    readers = [IndexedReader(prefix), IndexedReader(few)]
    line = f"validation every 7 steps and at the end, on 16 samples of {prefix}, {few}"
    assert validation_line(config, readers) == line
    assert validation_line(tiny_run(), []) == ""
    never = tiny_run(data={"validation": entries}, train={"validate_every": 0})
    assert validation_line(never, readers) == ""


def test_validation_on_what_is_learnt_is_said(prefix: Path, few: Path) -> None:
    learnt, other = [IndexedReader(prefix)], [IndexedReader(few)]
    assert seen_in_training(learnt, other) is None
    line = seen_in_training(learnt, [*other, IndexedReader(prefix)])
    assert line is not None
    assert line.startswith(f"data.validation holds what data.blend holds ({prefix}), so its loss")

"""A packed run over a damaged image: stopped, it goes on at another layout as if nothing were."""

import shutil
from pathlib import Path

import pytest

from tests.support.forked import train
from tests.support.launching import write_recipe
from tests.support.tiny_data import write_dataset
from vila_mc.observe.metrics import METRICS_NAME, read_metrics

OPTIONS = (
    *("--data.packing", "true", "--data.on_bad_image", "substitute"),
    *("--data.sequence_length", 128, "--model.language.max_positions", 128),
    *("--train.steps", 4, "--train.save_every", 2),
)


def test_a_packed_run_goes_on_at_another_layout(tmp_path: Path) -> None:
    tokenizer, prefix = write_dataset(tmp_path)
    _damage_first_image(prefix)
    recipe = write_recipe(tmp_path / "recipe.yaml", tokenizer, prefix)
    output = tmp_path / "out"
    blend = f'[{{path: "{prefix}"}}, {{path: "{prefix}", weight: 2}}]'
    command = ("--config", recipe, "--train.output", output, "--data.blend", blend, *OPTIONS)
    first = train(*command, "--ranks", 1)
    assert first.code == 0, first.err
    unbroken = read_metrics(output / METRICS_NAME)
    assert all(step["samples"] > 4 and step["filled"] > 0.7 for step in unbroken)
    assert sum(step["substitutes"] for step in unbroken) >= 1
    assert "warning: the image of " in first.err

    shutil.rmtree(output / "step-00000004")
    resumed = train(*command, "--ranks", 2)
    assert resumed.code == 0, resumed.err
    assert "resuming after step 2" in resumed.out
    for expected, found in zip(unbroken, read_metrics(output / METRICS_NAME), strict=True):
        for count in ("step", "samples", "images", "trained_tokens", "filled", "substitutes"):
            assert found[count] == expected[count]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["loss_by_entry"] == pytest.approx(expected["loss_by_entry"], rel=1e-5)
        assert min(found["loss_by_entry"]) < found["loss"] < max(found["loss_by_entry"])


def _damage_first_image(prefix: Path) -> None:
    file = prefix.with_name(prefix.name + ".bin")
    content = file.read_bytes()
    at = content.index(b"\x89PNG")
    file.write_bytes(content[:at] + bytes(16) + content[at + 16 :])

"""Checkpoints of adapters: what they leave in their base, and when that is another."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.parity.lora_trace import make_adapters_matter
from tests.support.tiny import tiny_microbatches, tiny_run
from tests.unit.checkpoint.conftest import trainer
from vila_mc.checkpoint.base import base_of_run, open_whole
from vila_mc.checkpoint.base_place import base_directory, relink
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest, versions
from vila_mc.checkpoint.needed import mark_needed, needed_by
from vila_mc.checkpoint.require_intact import stored_shapes
from vila_mc.checkpoint.save import PendingSave
from vila_mc.checkpoint.whole import whole_model
from vila_mc.config.lora import is_adapter
from vila_mc.data.batches import datasets
from vila_mc.errors import CheckpointError
from vila_mc.model.vila_model import VilaModel
from vila_mc.train.preflight import check_before_launch

LORA = dict(rank=2, vision_targets=["fc1"])


def _sections(output: Path) -> dict[str, dict[str, object]]:
    return {"train": {"output": str(output), "trainable": ["connector"]}, "lora": LORA}


def _loss(model: VilaModel) -> torch.Tensor:
    with torch.no_grad():
        loss: torch.Tensor = model.eval()(tiny_microbatches(tiny_run(), 0, 1)[1])
        return loss


@pytest.fixture
def adapted(checkpoint: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A checkpoint of adapters beside ``checkpoint``, and what its model computes."""
    with trainer(**_sections(tmp_path / "adapted")) as made:
        (stage,) = made.stages
        base = base_of_run(
            checkpoint, load_weights(checkpoint, [stage]), [stage], tmp_path / "adapted"
        )
        make_adapters_matter(stage, made.ranks)
        manifest = Manifest(
            step=0, samples_seen=0, config=made.config, layout=None, versions=versions()
        )
        (tmp_path / "adapted").mkdir()
        path = PendingSave(
            manifest, made.ranks, [stage], made.optimizer, base=base, in_background=False
        ).finish()
        return path, _loss(stage)


def test_it_holds_what_learns_and_the_whole_model_is_found(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path
) -> None:
    path, expected = adapted
    weights = {key for key in stored_shapes(path) if key.split(".")[0] in ("vision", "language")}
    tensors = {key for key in weights if "_extra_state" not in key}
    assert tensors
    assert all(is_adapter(key) for key in tensors)
    manifest = Manifest.read(path)
    assert base_directory(path, manifest) == checkpoint
    assert sum(map(is_adapter, open_whole(path, manifest))) == 2 * (4 * 7 + 2)
    with whole_model(path) as (model, _):
        assert _loss(model).equal(expected)
    with whole_model(checkpoint) as (model, _):
        assert not _loss(model).allclose(expected, rtol=1e-3)


def test_a_base_that_is_another_is_refused(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path
) -> None:
    path, _ = adapted
    manifest = json.loads((checkpoint / MANIFEST_NAME).read_text())
    name = next(iter(manifest["files"]))
    manifest["files"][name]["sha256"] = "0" * 64
    (checkpoint / MANIFEST_NAME).write_text(json.dumps(manifest))
    with (
        pytest.raises(CheckpointError, match=r"beside other weights .* \(fingerprint .*, now "),
        whole_model(path),
    ):
        pass


def test_damage_in_the_base_is_noticed(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path
) -> None:
    with open(next(checkpoint.glob("*.distcp")), "r+b") as file:
        file.seek(9000)
        file.write(b"X")
    with pytest.raises(CheckpointError, match="has other bytes"), whole_model(adapted[0]):
        pass


def test_a_base_that_is_gone_is_named_and_one_that_moved_along_is_found(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    path, expected = adapted
    moved = tmp_path / "elsewhere"
    shutil.copytree(checkpoint.parent, moved / checkpoint.parent.name)
    shutil.copytree(path.parent, moved / path.parent.name)
    shutil.rmtree(checkpoint)
    with (
        pytest.raises(CheckpointError, match=rf"those of {checkpoint}, which is not there"),
        whole_model(path),
    ):
        pass
    with whole_model(moved / path.parent.name) as (model, _):
        assert _loss(model).equal(expected)


def test_a_next_phase_goes_on_from_adapters_beside_the_same_base(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    path, expected = adapted
    with trainer(**_sections(tmp_path / "next")) as made:
        (stage,) = made.stages
        manifest = load_weights(path, [stage])
        assert _loss(stage).equal(expected)
        base = base_of_run(path, manifest, [stage], tmp_path / "next")
        assert base is not None
        assert base.record.path == str(checkpoint)
        assert "language.embedding.word_embeddings.weight" in base.keys
        assert not any(is_adapter(key) or key.startswith("connector.") for key in base.keys)


def test_adapters_are_not_left_out_without_a_word(adapted: tuple[Path, torch.Tensor]) -> None:
    with trainer() as plain:
        with pytest.raises(
            CheckpointError, match=r"lora\.rank: checkpoint 2, run none.* an export"
        ):
            load_weights(adapted[0], plain.stages)
        load_weights(adapted[0], plain.stages, ["connector"])


def test_adapters_are_checked_before_ranks_start(
    adapted: tuple[Path, torch.Tensor],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("open_blend", "open_validation"):  # what is asked here needs no data
        monkeypatch.setattr(datasets, name, lambda *_: [])
    path, _ = adapted

    def check(lora: dict[str, object]) -> None:
        train = dict(load=str(path), output=str(tmp_path / "run"), trainable=["connector"])
        check_before_launch(tiny_run(train=train, lora=lora), 1)

    check(LORA)
    with pytest.raises(CheckpointError, match=r"lora\.rank: checkpoint 2, run none"):
        check({})
    with pytest.raises(CheckpointError, match=r"lora\.alpha: checkpoint 4, run 9"):
        check({**LORA, "alpha": 9})
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match=r"which is not there any more"):
        check(LORA)


def test_what_is_not_loaded_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    sections = _sections(tmp_path)
    sections["train"]["load_parts"] = ["language"]
    with trainer(**sections) as made:
        manifest = load_weights(checkpoint, made.stages, ["language"])
        base = base_of_run(checkpoint, manifest, made.stages, tmp_path)
        assert base is not None
        assert all(key.startswith("language.") for key in base.keys)
    assert resolve_checkpoint(checkpoint) == checkpoint


def test_a_base_is_marked_while_adapters_name_it(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    """Its own run keeps it, until the adapters are gone or stand beside another."""
    path, expected = adapted
    assert needed_by(checkpoint) == path.parent
    with whole_model(checkpoint):
        pass  # a mark is no part of what is checked
    elsewhere = shutil.copytree(checkpoint.parent, tmp_path / "elsewhere")
    for mark in elsewhere.glob("*.json"):
        mark.unlink()
    relinked, base = relink(path.parent, elsewhere)
    assert (relinked, base) == ([path], elsewhere / checkpoint.name)
    assert needed_by(checkpoint) is None
    assert needed_by(base) == path.parent
    shutil.rmtree(checkpoint)
    with whole_model(path) as (model, _):
        assert _loss(model).equal(expected)
    shutil.rmtree(path.parent)
    assert needed_by(base) is None
    assert not list(elsewhere.glob("*.json"))


def test_what_is_another_base_is_not_relinked(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    path, _ = adapted
    other = shutil.copytree(checkpoint, tmp_path / "other" / checkpoint.name)
    manifest = json.loads((other / MANIFEST_NAME).read_text())
    next(iter(manifest["files"].values()))["sha256"] = "0" * 64
    (other / MANIFEST_NAME).write_text(json.dumps(manifest))
    before = (path / MANIFEST_NAME).read_text()
    for adapters, base, message in (
        (path, other, "does not hold the weights that the adapters of"),
        (path, tmp_path / "nowhere", "does not hold the weights"),
        (checkpoint, checkpoint, "holds no checkpoint of adapters beside a base"),
    ):
        with pytest.raises(CheckpointError, match=message):
            relink(adapters, base)
    assert (path / MANIFEST_NAME).read_text() == before


def test_after_a_move_checkpoints_name_the_base_where_it_is(
    adapted: tuple[Path, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    """Else the first one that a run saves in the new place would look in the old one."""
    path, _ = adapted
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint.parent, moved / checkpoint.parent.name)
    new = Path(shutil.copytree(path.parent, moved / path.parent.name)) / path.name
    shutil.rmtree(checkpoint)
    with trainer(**_sections(new.parent)) as made:
        base = base_of_run(new, load_weights(new, made.stages), made.stages, new.parent)
        assert base is not None
        assert base.record.path == str(moved / checkpoint.parent.name / checkpoint.name)
        assert (new / base.record.relative).resolve() == Path(base.record.path)


def test_a_base_that_cannot_be_marked_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapters").mkdir()
    mark_needed(checkpoint, tmp_path / "adapters")
    (mark,) = checkpoint.parent.glob("*.json")
    mark.unlink()
    mark.mkdir()
    (mark / "x").touch()  # a file cannot be put in its place
    mark_needed(checkpoint, tmp_path / "adapters")
    said = capsys.readouterr().out
    assert f"warning: {checkpoint} cannot be marked as the base of adapters" in said
    assert said.count("\n") == 1

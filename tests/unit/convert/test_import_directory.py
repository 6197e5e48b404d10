"""What an import writes into, and what becomes of what is there."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from vila_mc.checkpoint.manifest import Manifest
from vila_mc.convert.import_adapters import import_adapters
from vila_mc.convert.import_directory import import_directory, write_recipe
from vila_mc.errors import CheckpointError

GROWING = ".step-00000000.partial"


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def _plant(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        (["step-00000010/manifest.json"], "step-00000010"),
        (["a", "step-00000010/x", "step-00000200/x", "z"], "step-00000200"),
        (["step-00000000/manifest.json"], "step-00000000"),
        (["step-00000010.needed-by-1.json", "step-00000010/x"], "step-00000010"),
        (["metrics.jsonl"], "metrics.jsonl"),
        (["adapter_config.json"], "adapter_config.json"),
        (["config.json", "model.safetensors"], r"config\.json"),
        (["model.yaml"], "model.yaml"),
        (["tokenizer/tokenizer.model"], "tokenizer"),
        ([f"{GROWING}/x", "notes.txt"], "notes.txt"),
        ([".step-00000500.partial/x"], r"\.step-00000500\.partial"),
    ],
    ids=str,
)
def test_nothing_is_written_beside_what_is_there(
    planted: list[str], named: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    _plant(output, planted)
    before = _contents(output)
    message = rf"out holds {named}, and an import needs a new or empty directory: .*Choose another"
    with pytest.raises(CheckpointError, match=message), import_directory(output):
        pytest.fail("it was let in")
    assert _contents(output) == before


def test_what_a_killed_import_left_is_removed_and_no_link_followed(tmp_path: Path) -> None:
    output, other = tmp_path / "out", tmp_path / "other"
    _plant(output, [f"{GROWING}/x", "tokenizer/tokenizer.model"])
    other.write_text("somebody's")
    (output / "model.yaml").symlink_to(other)
    with import_directory(output):
        assert not _contents(output)
        write_recipe(output, {"model": {}})
    assert _contents(output) == {"model.yaml": "model: {}\n"}
    assert other.read_text() == "somebody's"


@pytest.mark.parametrize("was_there", [False, True])
def test_nothing_is_left_of_an_import_that_fails(was_there: bool, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "out"
    if was_there:
        output.mkdir(parents=True)

    def fail() -> None:
        with import_directory(output):
            _plant(output, ["tokenizer/tokenizer.model", "model.yaml", "step-00000000/x"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert output.exists() == was_there
    assert not _contents(tmp_path / "runs").keys() - {"out"}


def test_adapters_are_not_put_beside_other_files(
    peft: Path, adapted: Path, base: Path, tmp_path: Path
) -> None:
    """``--train.load`` of the directory would read what else is in it."""
    run = shutil.copytree(adapted.parent, tmp_path / "run")
    for output, named in ((peft, "adapter_config"), (run, "step-00000002"), (base.parent, "step-")):
        before = sorted(output.rglob("*"))
        with pytest.raises(CheckpointError, match=f"holds {named}.* a new or empty directory"):
            import_adapters(peft, base, output)
        assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_the_tokenizer_of_the_base_is_found_from_every_folder(
    is_there: bool,
    peft: Path,
    base: Path,
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, own = tmp_path / "here", Path("words/tokenizer.model")
    ours = shutil.copytree(base, here / "based" / base.name)
    manifest = Manifest.read(ours)
    data = replace(manifest.config.data, tokenizer=own)
    replace(manifest, config=replace(manifest.config, data=data)).write(ours)
    if is_there:
        (here / own).parent.mkdir()
        shutil.copyfile(tokenizer_path, here / own)
    monkeypatch.chdir(here)
    path = import_adapters(peft, Path("based"), Path("out"))
    monkeypatch.chdir(tmp_path)
    config = Manifest.read(path).config
    recipe = yaml.safe_load((here / "out" / "model.yaml").read_text())
    assert config.train.load == ours
    assert config.data.tokenizer == (here / own if is_there else None)
    assert recipe.get("data") == ({"tokenizer": str(here / own)} if is_there else None)
    assert (f"tokenizer {own}, which" in capsys.readouterr().out) != is_there

"""Files that do not end, unfold, or lead elsewhere, at every door that reads a stranger's."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vila_mc.checkpoint.manifest import MANIFEST_NAME, Manifest
from vila_mc.config.load import load_run
from vila_mc.convert.proof import reference
from vila_mc.convert.proof.packaged_code import require_packaged_code
from vila_mc.convert.proof.reloaded import ModelFaultError
from vila_mc.convert.tokenizer_source import copy_tokenizer
from vila_mc.convert.weights import open_weights, read_json
from vila_mc.data.indexed.dataset_manifest import SUFFIX, read_manifest
from vila_mc.data.ingest.corpus_text import read_sentences
from vila_mc.errors import VilaError
from vila_mc.evaluation.questions import read_questions
from vila_mc.evaluation.tasks.own import OwnTask, own_task

VOCABULARY = {"model": {"vocab": {"a": 0}}}


def _a_pipe(file: Path) -> None:
    os.mkfifo(file)


def _a_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _a_hole(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


def _brackets(file: Path) -> None:
    file.write_text('{"x": [' + "[]," * 12_000_000 + "[]]}")


def _template(folder: Path) -> object:
    (folder / "tokenizer.json").write_text(json.dumps(VOCABULARY))
    return copy_tokenizer(folder, folder / "copy")


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "questions": ("q.jsonl", lambda folder: read_questions(folder / "q.jsonl", folder)),
    "a task": ("t.jsonl", lambda folder: own_task(OwnTask(folder / "t.jsonl", folder))),
    "a config": ("config.json", lambda folder: read_json(folder / "config.json")),
    "a template": ("chat_template.jinja", _template),
    "a manifest": (MANIFEST_NAME, Manifest.read),
    "a set's manifest": (f"set{SUFFIX}", lambda folder: read_manifest(folder / "set")),
    "a recipe": ("r.yaml", lambda folder: load_run([folder / "r.yaml"])),
    "an image of a proof": ("a.png", lambda folder: reference._read(folder / "a.png")),
    "code": ("modeling_vila.py", require_packaged_code),
}
PIPES_ALONE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("model.safetensors", open_weights),
    "pickled weights": ("pytorch_model.bin", lambda f: open_weights(f, trust_pickle=True)),
    "text": ("a.txt", lambda folder: list(read_sentences([folder / "a.txt"]))),
}


@pytest.mark.parametrize("what", [_a_pipe, _a_device, _a_hole])
@pytest.mark.parametrize("door", DOORS)
def test_what_has_no_end(door: str, what: Callable[[Path], None], tmp_path: Path) -> None:
    name, read = DOORS[door]
    what(tmp_path / name)
    with pytest.raises((VilaError, ModelFaultError)):
        read(tmp_path)


@pytest.mark.parametrize("what", [_a_pipe, _a_device])
@pytest.mark.parametrize("door", PIPES_ALONE)
def test_what_is_no_file(door: str, what: Callable[[Path], None], tmp_path: Path) -> None:
    name, read = PIPES_ALONE[door]
    what(tmp_path / name)
    with pytest.raises(VilaError):
        read(tmp_path)


@pytest.mark.parametrize("door", ["a config", "a manifest", "a set's manifest"])
def test_what_unfolds(door: str, tmp_path: Path) -> None:
    name, read = DOORS[door]
    _brackets(tmp_path / name)
    with pytest.raises(VilaError, match="more than 10,000,000 values"):
        read(tmp_path)


def test_a_line_without_an_end_is_read_in_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 500_000)
    parts: Iterator[str] = read_sentences([tmp_path / "a.txt"])
    assert max(map(len, parts)) == 1_000_000


@pytest.mark.parametrize("is_download", [False, True])
def test_a_link_to_a_secret_is_not_written_on(is_download: bool, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "commit"
    blob = tmp_path / ("blobs" if is_download else "home") / "text"
    for one in (folder, blob.parent):
        one.mkdir(parents=True)
    blob.write_text("{{ messages }}")
    (folder / "chat_template.jinja").symlink_to(blob)
    if is_download:
        _template(folder)
        assert "{{ messages }}" in (folder / "copy" / "tokenizer_config.json").read_text()
    else:
        with pytest.raises(VilaError, match="is a link out of its folder"):
            _template(folder)


@pytest.mark.parametrize("chance", ["1" + "0" * 4000, "NaN", "1e999", "[]"])
def test_numbers_of_a_question(chance: str, tmp_path: Path) -> None:
    question = '{"id": 1, "task": "t", "images": [], "question": "q", "answer": "a", "chance": '
    (tmp_path / "q.jsonl").write_text(question + chance + "}")
    with pytest.raises(VilaError, match=r"is not a question|is not JSON"):
        read_questions(tmp_path / "q.jsonl", tmp_path)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "9" * 100, "9" * 100_000])
@pytest.mark.parametrize("option", ["steps", "output", "resume", "phase"])
def test_numbers_of_a_recipe(number: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"train: {{{option}: {number}}}")
    with pytest.raises(VilaError):
        load_run([tmp_path / "r.yaml"])

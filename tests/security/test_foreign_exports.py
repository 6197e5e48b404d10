"""What strangers wrote is not written on, not run, and not believed about what may be deleted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import hugging_face
from tests.support.hugging_face import VOCABULARY, random_clip, random_llama
from tests.support.tiny_data import random_sentences
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.export_checkpoint import Question, export_checkpoint, prove_export
from vila_mc.convert.formats.registry import FORMATS, FormatName, find_format
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.output_directory import MANIFEST
from vila_mc.convert.proof.packaged_code import require_packaged_code
from vila_mc.convert.proof.reloaded import Loading, ModelFaultError
from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import CheckpointError

MARK = "laundered"
"""Stands in every foreign value that has no business in what we write."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama and a CLIP whose publisher put his mark wherever a file takes one."""
    folder = tmp_path_factory.mktemp("published")
    hugging_face.save(folder, random_llama(), random_clip())
    train_tokenizer(random_sentences(200), folder / "t.model", VOCABULARY)
    write_tokenizer(load_convertible(folder / "t.model", VOCABULARY), folder / "llama", 64)
    auto_map = {"AutoTokenizer": [f"{MARK}.Tokenizer", None], "AutoConfig": f"{MARK}--x.Config"}
    mark = {"auto_map": auto_map, MARK: MARK, "custom_pipelines": {MARK: {"impl": MARK}}}
    tokenizer = {
        "tokenizer_class": MARK,
        "processor_class": MARK,
        "added_tokens_decoder": {"9": {"content": MARK}},
        "additional_special_tokens": [MARK],
        "chat_template": "{{ 'hello' }}",
    }
    for name, values in (
        ("llama/config.json", {"_name_or_path": MARK}),
        ("clip/config.json", {"_name_or_path": MARK}),
        ("llama/tokenizer_config.json", mark | tokenizer),
        ("llama/tokenizer.json", {MARK: MARK, "truncation": {MARK: 3}, "padding": {MARK: 3}}),
        ("llama/special_tokens_map.json", mark | {"mask_token": MARK}),
        ("llama/added_tokens.json", {MARK: 400}),
        ("llama/generation_config.json", mark),
        ("clip/preprocessor_config.json", {"processor_class": MARK}),
        ("llama/processor_config.json", mark),
        ("llama/vocab.json", {MARK: 0}),
        ("llama/chat_template.json", {"chat_template": MARK}),
    ):
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))
    for name in (f"llama/{MARK}.py", "llama/merges.txt", "llama/README.md", "clip/x.py"):
        (folder / name).write_text(f"# {MARK}")
    return folder


@pytest.fixture(scope="module")
def imported(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("imported") / "ours"
    import_checkpoint(combine_parts(parts / "llama", parts / "clip", "mlp2x_gelu"), output)
    return output


def _files_with(mark: str, directory: Path) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if mark.encode() in path.read_bytes()]


def test_an_import_keeps_a_vocabulary_and_nothing_else(imported: Path, parts: Path) -> None:
    names = {path.name for path in (imported / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads((imported / "tokenizer" / "tokenizer_config.json").read_text())
    assert config.keys() == {
        *("tokenizer_class", "bos_token", "eos_token", "unk_token", "pad_token", "chat_template")
    }
    # The vocabulary is the publisher's byte for byte, so that datasets made with it fit.
    assert _files_with(MARK, imported) == [imported / "tokenizer" / "tokenizer.json"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_holds_nothing_that_a_stranger_wrote(
    format: FormatName, imported: Path, parts: Path, tmp_path: Path
) -> None:
    for tokenizer in (None, parts / "llama"):
        export_checkpoint(imported, tmp_path / "out", format, tokenizer=tokenizer)
        assert _files_with(MARK, tmp_path / "out") == []
        assert _files_with("hello", tmp_path / "out") == []


def _import(parts: Path, output: Path) -> None:
    import_checkpoint(combine_parts(parts / "llama", parts / "clip", "linear"), output)


def test_a_link_to_another_file_is_not_copied_as_a_tokenizer(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / "parts")
    (tmp_path / "secret").write_text("nobody's business")
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / "parts" / "llama" / "tokenizer.json").unlink(missing_ok=True)
        (tmp_path / "parts" / "llama" / name).symlink_to(tmp_path / "secret")
        with pytest.raises(CheckpointError):
            _import(tmp_path / "parts", tmp_path / name)
        assert not [p for p in (tmp_path / name).rglob("*") if p.is_file()]


@pytest.fixture(scope="module")
def exported(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "hf"
    export_checkpoint(imported, output, dtype=torch.float32)
    return output


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + text)


def _ask_for(
    asked: dict[str, Any], file: str = "tokenizer_config.json"
) -> Callable[[Path, str], None]:
    def plant(directory: Path, evil: str) -> None:
        (directory / "evil.py").unlink(missing_ok=True)
        path = directory / file
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(values | {"auto_map": asked}))

    return plant


def _link_a_folder(directory: Path, evil: str) -> None:
    folder = directory.parent / "elsewhere"
    folder.mkdir()
    (folder / "generate.py").write_text(evil)
    (directory / "custom_generate").symlink_to(folder)


PLANTED = {
    "our file, changed": lambda d, evil: _append(d / "modeling_vila.py", evil),
    "a file of its own": lambda d, evil: _append(d / "evil.py", evil),
    "a generation loop": lambda d, evil: _append(d / "custom_generate" / "generate.py", evil),
    "a folder that is a link": _link_a_folder,
    "a tokenizer of its own": _ask_for({"AutoTokenizer": ["evil.Tokenizer", None]}),
    "code of another repository": _ask_for({"AutoTokenizer": "somebody--evil.Tokenizer"}),
    "code at another place": _ask_for({"AutoTokenizer": ["/tmp/evil.Tokenizer", None]}),
    "a file above": _ask_for({"AutoProcessor": "../evil.Processor"}, "processor_config.json"),
    "a part of the config": _ask_for({"AutoModel": "evil.Model"}, "config.json"),
    "a file that none of ours is": _ask_for({"AutoVideoProcessor": "evil.V"}, "video.json"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_code_that_is_not_ours_does_not_run_in_a_proof(
    name: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "hf")
    PLANTED[name](tmp_path / "hf", f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelFaultError, match="trust the code of this directory"):
        find_format("hf-vila").load(tmp_path / "hf", Loading(), VOCABULARY)
    assert not (tmp_path / "ran").exists()


def test_our_own_export_may_run_and_a_stranger_s_where_it_is_trusted(
    imported: Path, exported: Path, tmp_path: Path
) -> None:
    require_packaged_code(exported)
    shutil.copytree(exported, tmp_path / "hf")
    PLANTED["our file, changed"](tmp_path / "hf", f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    prove_export(imported, tmp_path / "hf", Question("?"), is_streamed=True, trusts_code=True)
    assert (tmp_path / "ran").exists()


def _listed(directory: Path, *names: str) -> None:
    (directory / MANIFEST).write_text(json.dumps({"format": "llm", "files": [MANIFEST, *names]}))


def _thesis(directory: Path) -> None:
    (directory / "thesis.tex").write_text("dear")
    _listed(directory, "thesis.tex")


def _paths_above(directory: Path) -> None:
    (directory / "notes.txt").write_text("dear")
    _listed(directory, "../notes.txt", str(directory / "notes.txt"), "./notes.txt", "notes.txt")


def _link_named_as_a_file_of_ours(directory: Path) -> None:
    (directory.parent / "dear.json").write_text("dear")
    (directory / "config.json").symlink_to(directory.parent / "dear.json")
    _listed(directory, "config.json")


def _link_named_as_a_folder_of_ours(directory: Path) -> None:
    (directory.parent / "dear").mkdir()
    (directory.parent / "dear" / "config.json").write_text("dear")
    (directory / "llm").symlink_to(directory.parent / "dear")
    _listed(directory, "llm", "llm/config.json")


def _a_list_that_is_none(directory: Path) -> None:
    (directory / "config.json").write_text("dear")
    (directory / MANIFEST).write_text(json.dumps({"files": {"config.json": [["x"]]}, "format": 3}))


def _a_pipe(directory: Path) -> None:
    os.mkfifo(directory / MANIFEST)


@pytest.mark.parametrize(
    "plant",
    [
        _thesis,
        _paths_above,
        _link_named_as_a_file_of_ours,
        _link_named_as_a_folder_of_ours,
        _a_list_that_is_none,
        _a_pipe,
    ],
)
def test_a_list_of_what_may_be_deleted_is_not_believed(
    plant: Callable[[Path], None], parts: Path, imported: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    plant(tmp_path / "out")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    source = combine_parts(parts / "llama", parts / "clip", "linear")
    with pytest.raises(CheckpointError, match=r"which no export wrote|is damaged"):
        write_export(source.tensors, source.model, parts / "llama", tmp_path / "out", format="llm")
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_of_ours_is_replaced(format: FormatName, imported: Path, tmp_path: Path) -> None:
    for _ in range(2):
        export_checkpoint(imported, tmp_path / "out", format)

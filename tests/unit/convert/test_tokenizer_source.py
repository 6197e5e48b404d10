"""The tokenizer beside an export: converted or copied, with a placeholder where one is needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.convert.independent_vila import VOCABULARY
from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer
from vila_mc.convert.tokenizer_source import IMAGE_TOKEN, open_tokenizer
from vila_mc.errors import CheckpointError


@pytest.fixture
def folder(tokenizer_path: Path, tmp_path: Path) -> Path:
    """A tokenizer as Hugging Face publishes it, without a token that begins a sequence."""
    path = tmp_path / "published"
    path.mkdir()
    write_tokenizer(load_convertible(tokenizer_path, VOCABULARY), path, 99)
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["bos_token"], config["pad_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def _load(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("given", ["folder", "tokenizer.json", "sentencepiece"])
def test_the_placeholder_is_the_first_free_id(
    given: str, folder: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    path = {"folder": folder, "tokenizer.json": folder / "tokenizer.json"}.get(
        given, tokenizer_path
    )
    tokenizer = open_tokenizer(path, VOCABULARY)
    assert tokenizer.num_tokens() == tokenizer.image_token() == VOCABULARY
    out = tmp_path / "out"
    out.mkdir()
    tokenizer.write(out, 64, processor="LlavaProcessor", with_image=True)
    loaded = _load(out)
    assert loaded.convert_tokens_to_ids(IMAGE_TOKEN) == VOCABULARY
    assert loaded("a<image>b", add_special_tokens=False)["input_ids"].count(VOCABULARY) == 1
    assert loaded.model_max_length == 64
    # Written once more, it is a token that is there already.
    again = open_tokenizer(out, VOCABULARY + 1)
    assert again.image_token() == VOCABULARY


def test_text_without_a_placeholder_is_read_as_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    open_tokenizer(folder, VOCABULARY).write(out, 64, processor=None, with_image=False)
    text = "Two dogs <image> run  at 12:30"
    assert _load(out)(text)["input_ids"] == _load(folder)(text)["input_ids"]


def test_special_tokens_are_looked_up(folder: Path, tokenizer_path: Path) -> None:
    ids = open_tokenizer(folder, VOCABULARY).token_ids()
    assert ids == {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 2}
    ids = open_tokenizer(tokenizer_path, VOCABULARY).token_ids()
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"401 tokens, but .* is 400"):
        open_tokenizer(folder, VOCABULARY - 1)
    with pytest.raises(CheckpointError, match="neither"):
        open_tokenizer(tmp_path, VOCABULARY)
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(CheckpointError, match="no vocabulary"):
        open_tokenizer(folder, VOCABULARY)

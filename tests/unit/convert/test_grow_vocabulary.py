"""A tokenizer with more tokens than its model makes the vocabulary grow while it is imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.support import families
from tests.support.families import VOCABULARY
from tests.support.tiny_data import random_sentences
from vila_mc.checkpoint.vocabulary import TABLES
from vila_mc.checkpoint.whole import whole_model
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.grow_vocabulary import with_tokenizer
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.convert.proof import fresh_request
from vila_mc.convert.proof.compare_source import compare_source
from vila_mc.convert.proof.fresh_process import answer_requests
from vila_mc.convert.tokenizer_files import load_convertible, write_tokenizer
from vila_mc.data.chat_templates import find_template
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import CheckpointError

NEW = ("<|im_start|>", "<|im_end|>", "<think>")
GROWN = VOCABULARY + len(NEW)
LINE = f"the vocabulary grows from {VOCABULARY} to {GROWN} tokens: new rows are the mean of the "
CASES = ["qwen2 on SigLIP", "llama 3 on CLIP"]  # tied and not


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``plain``, a SentencePiece model; ``grown``, the same with tokens added by transformers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "plain").mkdir()
    model = folder / "plain" / "tokenizer.model"
    train_tokenizer(random_sentences(200), model, VOCABULARY)
    (folder / "fast").mkdir()
    write_tokenizer(load_convertible(model, VOCABULARY), folder / "fast", 64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "fast")
    tokenizer.add_special_tokens({"additional_special_tokens": list(NEW)})
    tokenizer.save_pretrained(folder / "grown")
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare here and now: a fresh process takes seconds to start."""
    monkeypatch.setattr(fresh_request, "_run", lambda folder, _: answer_requests(folder))


def _published(name: str, folder: Path) -> tuple[families.Family, ForeignModel]:
    family = families.make(name)
    family.save(folder)
    return family, combine_parts(folder / "llm", folder / "vision", family.connector)


def _table(family: families.Family, name: str) -> torch.Tensor:
    embedding, head = family.language.get_input_embeddings(), family.language.lm_head
    table: torch.Tensor = (embedding if name == TABLES[0] else head).weight.detach()
    return table


@pytest.mark.parametrize("name", CASES)
def test_new_rows_are_the_mean_and_go_out_again(
    name: str,
    tokenizers: Path,
    tmp_path: Path,
    in_process: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    family, source = _published(name, tmp_path)
    assert source.model.language.vocab_size == VOCABULARY
    grown = with_tokenizer(source, tokenizers / "grown")
    assert capsys.readouterr().out == f"{LINE}others\n"
    import_checkpoint(grown, tmp_path / "ours")
    with whole_model(tmp_path / "ours") as (ours, manifest), torch.inference_mode():
        assert manifest.config.model.language.vocab_size == GROWN
        assert manifest.config.data.tokenizer is not None
        tokenizer = Tokenizer(manifest.config.data.tokenizer)
        assert tokenizer.vocab_size == GROWN
        assert tokenizer.special_id("<|im_end|>") == VOCABULARY + 1
        state = dict(ours.named_parameters())
        for table in (each for each in TABLES if each in state):
            real, weight = _table(family, table), state[table]
            assert torch.equal(weight[:VOCABULARY], real)
            mean = real.double().mean(0).float()
            torch.testing.assert_close(weight[VOCABULARY:GROWN], mean.expand(len(NEW), -1))
            assert not weight[GROWN:].any()
        ids = torch.randint(0, VOCABULARY, (2, 60), generator=torch.Generator().manual_seed(1))
        logits = ours.language(ids, None, None)[..., :VOCABULARY]
        assert (logits - family.language(ids).logits).abs().max() < 1e-5
    proof = compare_source(grown, tmp_path / "ours")
    assert {"tokens", "logits", "features"} <= {text.split()[0] for text in proof.proven}

    export_checkpoint(tmp_path / "ours", tmp_path / "hf", "hf-vila")
    again = read_whole(tmp_path / "hf")
    assert again.model == grown.model
    for tensor, values in grown.tensors.items():
        assert torch.equal(again.tensors[tensor].read(), values.read()), tensor
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").convert_tokens_to_ids(NEW[2]) == GROWN - 1


def test_the_tokenizer_beside_a_language_model_makes_it_grow(
    tokenizers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = _published(CASES[0], tmp_path)
    for file in (tokenizers / "grown").iterdir():
        (tmp_path / "llm" / file.name).write_bytes(file.read_bytes())
    grown = combine_parts(tmp_path / "llm", tmp_path / "vision", "linear")
    assert grown.model.language.vocab_size == GROWN
    assert capsys.readouterr().out == f"{LINE}others\n"
    # Training takes a SentencePiece model where there is one, which knows no added tokens.
    model = tokenizers / "plain" / "tokenizer.model"
    (tmp_path / "llm" / "tokenizer.model").write_bytes(model.read_bytes())
    plain = combine_parts(tmp_path / "llm", tmp_path / "vision", "linear")
    assert plain.model.language == source.model.language
    assert capsys.readouterr().out == ""
    # Unless it is asked for what was added.
    asked = with_tokenizer(plain, tmp_path / "llm")
    assert asked.model.language.vocab_size == GROWN
    import_checkpoint(asked, tmp_path / "ours")
    assert Tokenizer(tmp_path / "ours" / "tokenizer").vocab_size == GROWN


def test_a_whole_model_grows_with_its_placeholder(
    tokenizers: Path, tmp_path: Path, in_process: None
) -> None:
    _, source = _published("llama 3 on CLIP", tmp_path)
    plain = tokenizers / "plain" / "tokenizer.model"
    for format in ("hf-vila", "vila"):
        folder = tmp_path / format
        write_export(source.tensors, source.model, plain, folder, torch.float32, format=format)
        grown = with_tokenizer(read_whole(folder), tokenizers / "grown")
        import_checkpoint(grown, tmp_path / f"ours {format}")
        proof = compare_source(grown, tmp_path / f"ours {format}")
        assert "logits" in {text.split()[0] for text in proof.proven}


def test_a_tokenizer_that_fits_changes_nothing(tokenizers: Path, tmp_path: Path) -> None:
    _, source = _published(CASES[0], tmp_path)
    same = with_tokenizer(source, tokenizers / "plain")
    assert same.model == source.model
    assert same.tensors == source.tensors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds neither tokenizer.json nor tokenizer.model. Give the directory of"),
        ({"tokenizer.json": {"model": 3}}, "is damaged: no vocabulary"),
    ],
    ids=["empty", "damaged"],
)
def test_what_is_no_tokenizer_is_refused(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, source = _published(CASES[0], tmp_path)
    (tmp_path / "other").mkdir()
    for name, values in content.items():
        (tmp_path / "other" / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as refused:
        with_tokenizer(source, tmp_path / "other")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_chatml_can_be_chatted_with_afterwards(tokenizers: Path) -> None:
    tokenizer = Tokenizer(tokenizers / "grown")
    template = find_template("chatml")
    assert all(tokenizer.special_id(text) >= VOCABULARY for text in template.special)

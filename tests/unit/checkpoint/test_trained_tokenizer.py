"""What a model learned to read with is known, wherever it goes."""

import dataclasses
from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from tests.support.tiny_data import random_sentences
from vila_mc.checkpoint.manifest import DatasetRecord, Manifest
from vila_mc.checkpoint.trained_tokenizer import another_tokenizer
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """Two of one size."""
    folder = tmp_path_factory.mktemp("tokenizers")
    sentences = random_sentences(200)
    train_tokenizer(sentences, folder / "one.model", 400)
    train_tokenizer([text[::-1] for text in sentences], folder / "other.model", 400)
    return Tokenizer(folder / "one.model"), Tokenizer(folder / "other.model")


def _manifest(tokenizer: Path | None, *fingerprints: str | None) -> Manifest:
    records = tuple(DatasetRecord(1, "sha", None, each) for each in fingerprints)
    config = tiny_run(data={"tokenizer": str(tokenizer)} if tokenizer else {})
    return Manifest(
        step=0, samples_seen=0, config=config, layout=None, versions={}, datasets=records
    )


def test_another_tokenizer_is_told(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    one, other = tokenizers
    learned = {
        "its datasets": _manifest(None, one.fingerprint(), None),
        "the file of an import": _manifest(one.path),
    }
    for source, manifest in learned.items():
        assert another_tokenizer(manifest, one) is None, source
        assert "learned with another tokenizer" in (another_tokenizer(manifest, other) or "")


@pytest.mark.parametrize("records", [(), (None,)])
def test_what_is_not_known_is_not_told(
    tokenizers: tuple[Tokenizer, Tokenizer], records: tuple[None, ...]
) -> None:
    missing = tokenizers[0].path.with_name("gone.model")
    for tokenizer in (None, missing):
        assert another_tokenizer(_manifest(tokenizer, *records), tokenizers[1]) is None


def test_two_records_are_the_same_by_their_contents(
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> None:
    record = DatasetRecord(1, "sha", None, "one")
    assert record == DatasetRecord(1, "sha")
    assert dataclasses.replace(record, sha256="other") != record

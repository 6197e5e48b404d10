"""Which template a model was trained with, from what its checkpoint says of its datasets."""

import dataclasses
from typing import Any

import pytest

from vila_mc.checkpoint.manifest import DatasetRecord
from vila_mc.checkpoint.trained_template import DEFAULT, template_to_ask_with, trained_template
from vila_mc.data.chat_templates import BUILT_IN, Template
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import CheckpointError

OWN = Template(first="{system}\nQ: ", next="\nQ: ", close="\nA:", system="Tiny.", end=".{eos}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With the tokens of chatml."""
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(["the words of a tiny model"] * 9, path, 280, BUILT_IN["chatml"].special)
    return Tokenizer(path)


def _record(template: dict[str, Any] | str | None, samples: int = 10) -> DatasetRecord:
    return DatasetRecord(samples, "sha", template)


PLAIN, CHATML = _record("plain", 99), _record("chatml")
OWN_RECORD = _record(OWN.describe(), 20)


@pytest.mark.parametrize(
    ("datasets", "expected", "is_told"),
    [
        ((), DEFAULT, False),
        ((_record(None),), DEFAULT, False),
        ((PLAIN,), BUILT_IN["plain"], False),
        ((PLAIN, CHATML), BUILT_IN["chatml"], False),
        ((CHATML, CHATML, _record(None)), BUILT_IN["chatml"], False),
        ((CHATML, OWN_RECORD), OWN, True),
        ((_record({"tokenizer": "{{ 1 }}"}),), TokenizerTemplate("{{ 1 }}", (), ()), False),
    ],
)
def test_the_template_of_most_samples_is_the_trained_one(
    datasets: tuple[DatasetRecord, ...], expected: Template | TokenizerTemplate, is_told: bool
) -> None:
    template, note = trained_template(datasets)
    assert template == expected
    assert bool(note) == is_told


@pytest.mark.parametrize(
    "described",
    [
        "alpaca",
        {},
        {"first": 3, "next": "", "close": "", "end": ""},
        {"tokenizer": 3},
        OWN.describe() | {"special": "x"},
        OWN.describe() | {"more": "x"},
    ],
)
def test_a_template_that_is_none_is_refused(described: dict[str, Any] | str) -> None:
    with pytest.raises(CheckpointError, match="does not know"):
        trained_template([_record(described)])


@pytest.mark.parametrize(
    ("name", "datasets", "expected", "is_told"),
    [
        (None, (), DEFAULT, True),
        (None, (_record(None),), DEFAULT, True),
        (None, (PLAIN, CHATML), BUILT_IN["chatml"], False),
        (None, (CHATML, OWN_RECORD), OWN, True),
        ("chatml", (CHATML,), BUILT_IN["chatml"], False),
        ("vicuna_v1", (_record(None),), DEFAULT, False),
        ("vicuna_v1", (CHATML,), DEFAULT, True),
    ],
)
def test_a_model_is_asked_as_it_was_trained_or_it_is_said(
    tokenizer: Tokenizer,
    name: str | None,
    datasets: tuple[DatasetRecord, ...],
    expected: Template | TokenizerTemplate,
    is_told: bool,
) -> None:
    template, note = template_to_ask_with(name, tokenizer, datasets)
    assert template == expected
    assert bool(note) == is_told


def test_a_model_that_saw_no_conversation_is_told_from_one_of_which_nothing_is_known(
    tokenizer: Tokenizer,
) -> None:
    _, unknown = template_to_ask_with(None, tokenizer, ())
    _, untaught = template_to_ask_with(None, tokenizer, [_record(None)])
    assert unknown.startswith("it is not recorded which chat template")
    assert untaught.startswith("no dataset that the model was trained on has a chat template")


def test_two_records_differ_by_contents_alone() -> None:
    assert _record("chatml") == _record("plain")
    assert dataclasses.replace(_record("plain"), sha256="other") != _record("plain")


@pytest.mark.parametrize(
    ("name", "before", "datasets", "expected", "is_told"),
    [
        (None, "chatml", (), BUILT_IN["chatml"], False),
        (None, "chatml", (_record(None),), BUILT_IN["chatml"], False),
        (None, "plain", (CHATML,), BUILT_IN["chatml"], False),
        (None, OWN.describe(), (CHATML,), BUILT_IN["chatml"], False),
        ("vicuna_v1", "chatml", (), DEFAULT, True),
        ("chatml", BUILT_IN["chatml"].describe(), (), BUILT_IN["chatml"], False),
    ],
)
def test_what_training_began_from_counts_where_no_dataset_has_one(
    name: str | None,
    before: dict[str, Any] | str,
    datasets: tuple[DatasetRecord, ...],
    expected: Template,
    is_told: bool,
    tokenizer: Tokenizer,
) -> None:
    template, note = template_to_ask_with(name, tokenizer, datasets, before)
    assert template == expected
    assert bool(note) == is_told

"""The name table: complete, bit-equal both ways, and loud when a state does not fit."""

import pytest
import torch
from independent_vila import PADDED, VOCABULARY, build, tiny_model

from vila_mc.checkpoint.hf.convert import from_hf, to_hf
from vila_mc.checkpoint.hf.names import tables
from vila_mc.config.model import DOWNSAMPLE_FACTOR
from vila_mc.errors import CheckpointError

KINDS = tuple(DOWNSAMPLE_FACTOR)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_exactly_one_row(kind):
    model = tiny_model(kind)
    state = build(model).canonical()
    rows = [row for table in tables(model, PADDED) for row in table.rows]
    assert sorted(row.ours for row in rows) == sorted(state)
    theirs = [name for table in tables(model) for name in table.their_shapes()]
    assert len(theirs) == len(set(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bit_equal(kind):
    model = tiny_model(kind)
    state = build(model).canonical()
    back = from_hf(to_hf(state, model), model, PADDED)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        padded = "word_embeddings" in name or "output_layer" in name
        rows = slice(VOCABULARY if padded else None)
        assert torch.equal(back[name][rows], tensor[rows]), name
        assert back[name].shape == tensor.shape
        assert not padded or not back[name][VOCABULARY:].any()
    again = to_hf(back, model)
    for name, tensor in to_hf(state, model).items():
        assert torch.equal(again[name], tensor), name


def test_hf_layout_is_the_one_of_the_llama():
    model = tiny_model()
    vila = build(model)
    exported = to_hf(vila.canonical(), model)
    for name, tensor in vila.llama.state_dict().items():
        assert torch.equal(exported[f"language_model.{name}"], tensor), name


def test_without_padding_rows():
    model = tiny_model(vocab_size=PADDED)
    state = build(model).canonical()
    back = from_hf(to_hf(state, model), model)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_missing_surplus_and_misshaped_names_are_listed():
    model = tiny_model()
    state = build(model).canonical()
    del state["connector.norm.bias"]
    state["connector.extra"] = torch.zeros(1)
    state["vision.ln_pre.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        to_hf(state, model)
    message = str(caught.value)
    assert "1 missing (connector.norm.bias)" in message
    assert "1 surplus (connector.extra)" in message
    assert "1 mis-shaped (vision.ln_pre.bias [5] instead of [32])" in message
    assert "\n" not in message


def test_from_hf_refuses_another_model():
    model = tiny_model("linear")
    hf = to_hf(build(model).canonical(), model)
    with pytest.raises(CheckpointError, match="missing"):
        from_hf(hf, tiny_model("mlp2x_gelu"))


def test_a_vocabulary_table_smaller_than_the_vocabulary_is_refused():
    model = tiny_model()
    state = build(model).canonical()
    name = "language.embedding.word_embeddings.weight"
    state[name] = state[name][: VOCABULARY - 1]
    with pytest.raises(CheckpointError, match=r"400 rows.*vocab_size is 401"):
        to_hf(state, model)


def test_tables_of_different_padding_are_refused():
    model = tiny_model()
    state = build(model).canonical()
    state["language.output_layer.weight"] = state["language.output_layer.weight"][:VOCABULARY]
    with pytest.raises(CheckpointError, match="mis-shaped"):
        to_hf(state, model)

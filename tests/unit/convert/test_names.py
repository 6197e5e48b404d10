"""The name table: complete, bit-equal both ways, and loud when a state does not fit."""

import pytest
import torch

from tests.support.connectors import CASES
from tests.unit.convert.independent_vila import PADDED, VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.names import Table, connector_table, tables
from vila_mc.convert.rename_tensors import from_hf, to_hf, vocabulary_rows
from vila_mc.errors import CheckpointError


def _parts(model: ModelConfig, padded: int = PADDED) -> tuple[Table, Table, Table]:
    return tables(model, find_format("hf-vila").naming, padded_vocab=padded)


def _to_hf(state: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    padded = vocabulary_rows(lazily(state))
    return dict(to_hf(lazily(state), _parts(model, padded)))


def _from_hf(
    hf: dict[str, torch.Tensor], model: ModelConfig, padded: int = PADDED
) -> dict[str, torch.Tensor]:
    joined = from_hf(lazily(hf), _parts(model, padded), "the directory")
    return {name: tensor.read() for name, tensor in joined.items()}


@pytest.mark.parametrize("kind", CASES)
def test_every_parameter_has_exactly_one_row(kind: str) -> None:
    model = tiny_model(kind)
    state = build(model).canonical()
    rows = [row for table in _parts(model) for row in table.rows]
    assert sorted(row.ours for row in rows) == sorted(state)
    theirs = [name for table in _parts(model) for name in table.their_shapes()]
    assert len(theirs) == len(set(theirs))


@pytest.mark.parametrize("kind", CASES)
def test_there_and_back_is_bit_equal(kind: str) -> None:
    model = tiny_model(kind)
    state = build(model).canonical()
    back = _from_hf(_to_hf(state, model), model)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        padded = "word_embeddings" in name or "output_layer" in name
        rows = slice(VOCABULARY if padded else None)
        assert torch.equal(back[name][rows], tensor[rows]), name
        assert back[name].shape == tensor.shape
        assert not padded or not back[name][VOCABULARY:].any()
    again = _to_hf(back, model)
    for name, tensor in _to_hf(state, model).items():
        assert torch.equal(again[name], tensor), name


def test_hf_layout_is_the_one_of_the_llama() -> None:
    model = tiny_model()
    vila = build(model)
    exported = _to_hf(vila.canonical(), model)
    for name, tensor in vila.llama.state_dict().items():
        assert torch.equal(exported[f"language_model.{name}"], tensor), name


def test_without_padding_rows() -> None:
    model = tiny_model(vocab_size=PADDED)
    state = build(model).canonical()
    back = _from_hf(_to_hf(state, model), model)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_missing_surplus_and_misshaped_names_are_listed() -> None:
    model = tiny_model()
    state = build(model).canonical()
    del state["connector.norm.bias"]
    state["connector.extra"] = torch.zeros(1)
    state["vision.ln_pre.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        _to_hf(state, model)
    message = str(caught.value)
    assert "1 missing (connector.norm.bias)" in message
    assert "1 surplus (connector.extra)" in message
    assert "1 mis-shaped (vision.ln_pre.bias [5] instead of [32])" in message
    assert "\n" not in message


def test_from_hf_refuses_another_model() -> None:
    model = tiny_model("linear")
    hf = _to_hf(build(model).canonical(), model)
    with pytest.raises(CheckpointError, match="missing"):
        _from_hf(hf, tiny_model("mlp2x_gelu"))


def test_a_vocabulary_table_smaller_than_the_vocabulary_is_refused() -> None:
    model = tiny_model()
    state = build(model).canonical()
    name = "language.embedding.word_embeddings.weight"
    state[name] = state[name][: VOCABULARY - 1]
    with pytest.raises(CheckpointError, match=r"400 rows.*vocab_size is 401"):
        _to_hf(state, model)


def test_tables_of_different_padding_are_refused() -> None:
    model = tiny_model()
    state = build(model).canonical()
    state["language.output_layer.weight"] = state["language.output_layer.weight"][:VOCABULARY]
    with pytest.raises(CheckpointError, match="mis-shaped"):
        _to_hf(state, model)


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    model = tiny_model()
    for bad in (float("nan"), float("inf"), -float("inf")):
        state = build(model).canonical()
        state["vision.ln_pre.bias"][3] = bad
        with pytest.raises(CheckpointError, match=r"vision\.ln_pre\.bias holds NaN or infinity"):
            _to_hf(state, model)


def test_two_linear_layers_are_not_taken_for_one() -> None:
    model = tiny_model("linear")
    table = connector_table(model, find_format("hf-llava").naming)
    width = model.language.width
    state = {
        f"connector.fc1.{part}": torch.randn(*shape)
        for part, shape in (("weight", (width, model.vision.width)), ("bias", (width,)))
    }
    hf = dict(to_hf(lazily(state), [table]))
    assert torch.equal(hf["multi_modal_projector.linear_2.weight"], torch.eye(width))
    hf["multi_modal_projector.linear_2.weight"][2, 1] = 0.5
    joined = from_hf(lazily(hf), [table], "the directory")
    with pytest.raises(CheckpointError, match="not the identity"):
        joined["connector.fc1.weight"].read()


def test_a_format_refuses_the_connectors_it_cannot_hold() -> None:
    with pytest.raises(CheckpointError, match="cannot hold the connector mlp_downsample"):
        connector_table(tiny_model(), find_format("hf-llava").naming)
    with pytest.raises(CheckpointError, match="cannot hold the connector downsample_linear"):
        connector_table(tiny_model("downsample_linear"), find_format("vila").naming)
    others = r"knows linear, .*, with other options\. hf-vila holds every connector"
    with pytest.raises(CheckpointError, match=f"cannot hold the connector mlp3x_gelu; it {others}"):
        connector_table(tiny_model("mlp3x_gelu"), find_format("hf-llava").naming)
    with pytest.raises(CheckpointError, match=rf"\(token_order columns\); it {others}"):
        connector_table(tiny_model("mlp_downsample by columns"), find_format("vila").naming)

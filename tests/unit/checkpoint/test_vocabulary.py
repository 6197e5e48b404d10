"""New tokens begin as the mean of the known ones, and these stay what they are, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from tests.support.tiny import VOCABULARY, tiny_microbatches, tiny_run
from tests.unit.checkpoint.conftest import trainer
from vila_mc.checkpoint.lazy import lazily
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.checkpoint.vocabulary import TABLES, grown_shards, growth_line
from vila_mc.config.load import run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.config.train import ModelPart
from vila_mc.errors import CheckpointError
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed
from vila_mc.topology.shapes import model_parameters

EMBEDDING, OUTPUT = TABLES
WITHIN_PADDING, BEYOND_PADDING = VOCABULARY + 2, 2 * VOCABULARY


def _model(vocab_size: int, *, tied: bool = False) -> dict[str, Any]:
    language = run_to_dict(tiny_run())["model"]["language"]
    return {"language": language | {"vocab_size": vocab_size, "tied_embeddings": tied}}


def _run(vocab_size: int = VOCABULARY, *, tied: bool = False, **sections: Any) -> RunConfig:
    return tiny_run(model=_model(vocab_size, tied=tied), **sections)


def _written(output: Path, *, tied: bool = False) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose padding rows hold anything, and its weights."""
    config = _run(tied=tied, train={"output": str(output)})
    generator = torch.Generator().manual_seed(3)
    state = {
        each.name: torch.randn(each.shape, generator=generator) / 8
        for each in model_parameters(config.model)
    }
    return write_weights_checkpoint(config, lazily(state), "the test"), state


@contextmanager
def _fresh(config: RunConfig) -> Iterator[VilaModel]:
    with distributed(config.parallel, seed=1) as ranks:
        (stage,) = build_stages(config, ranks)
        yield stage


def _logits(stage: VilaModel) -> Tensor:
    batch = tiny_microbatches(stage.run_config, 0, 1)[1]
    with torch.no_grad():
        logits: Tensor = stage(batch, with_loss=False)
    return logits[..., :VOCABULARY]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("vocab_size", [WITHIN_PADDING, BEYOND_PADDING])
def test_new_rows_are_the_mean_and_known_ones_stay(
    vocab_size: int, tied: bool, tmp_path: Path
) -> None:
    directory, state = _written(tmp_path / "out", tied=tied)
    with _fresh(_run(tied=tied)) as known:
        load_weights(directory, [known])
        expected_logits = _logits(known)
    config = _run(vocab_size, tied=tied)
    with _fresh(config) as stage:
        manifest = load_weights(directory, [stage])
        loaded = dict(stage.named_parameters())
        torch.testing.assert_close(_logits(stage), expected_logits, rtol=0, atol=1e-6)
    assert loaded.keys() == state.keys()
    for name, values in state.items():
        weight = loaded[name].detach()
        if name not in TABLES:
            assert torch.equal(weight, values), name
            continue
        assert len(weight) == config.model.language.padded_vocab()
        known_rows = values[:VOCABULARY]
        assert torch.equal(weight[:VOCABULARY], known_rows), name
        torch.testing.assert_close(weight[VOCABULARY], known_rows.mean(0))
        assert (weight[VOCABULARY:] == weight[VOCABULARY]).all(), name
    assert growth_line(manifest, config, ("language",)) == (
        f"the vocabulary grows from 131 to {vocab_size} tokens: new rows are the mean of the others"
    )
    assert growth_line(manifest, _run(tied=tied), ("language",)) == ""


def test_a_run_in_bf16_rounds_once(tmp_path: Path) -> None:
    directory, state = _written(tmp_path / "out")
    with _fresh(_run(BEYOND_PADDING, train={"precision": "bf16"})) as stage:
        load_weights(directory, [stage])
        weight = stage.language.output_layer.weight.detach()
    known_rows = state[OUTPUT][:VOCABULARY]
    assert torch.equal(weight[:VOCABULARY], known_rows.bfloat16())
    assert torch.equal(weight[-1], known_rows.double().mean(0).bfloat16())


@pytest.mark.parametrize("parts", [("language",), ("language", "vision")])
def test_it_grows_with_the_language_part(parts: tuple[ModelPart, ...], tmp_path: Path) -> None:
    directory, state = _written(tmp_path / "out")
    with _fresh(_run(WITHIN_PADDING)) as stage:
        load_weights(directory, [stage], parts)
        weight = stage.language.embedding.word_embeddings.weight.detach()
    assert torch.equal(weight[:VOCABULARY], state[EMBEDDING][:VOCABULARY])
    torch.testing.assert_close(weight[VOCABULARY], state[EMBEDDING][:VOCABULARY].mean(0))


@pytest.mark.parametrize("vocab_size", [WITHIN_PADDING, BEYOND_PADDING, VOCABULARY - 1])
def test_other_parts_leave_the_vocabulary_alone(vocab_size: int, tmp_path: Path) -> None:
    directory, _ = _written(tmp_path / "out")
    with _fresh(_run(vocab_size)) as stage:
        table = stage.language.embedding.word_embeddings.weight
        fresh = table.detach().clone()
        manifest = load_weights(directory, [stage], ("vision", "connector"))
        assert torch.equal(table, fresh)
    assert growth_line(manifest, stage.run_config, ("vision", "connector")) == ""


@pytest.mark.parametrize("parts", [("language",), ("vision", "connector", "language")])
def test_it_never_shrinks(parts: tuple[ModelPart, ...], tmp_path: Path) -> None:
    directory, _ = _written(tmp_path / "out")
    with _fresh(_run(VOCABULARY - 1)) as stage, pytest.raises(CheckpointError) as refused:
        load_weights(directory, [stage], parts)
    message = str(refused.value)
    assert "model.language.vocab_size: checkpoint 131, run 130. Use" in message
    assert message.endswith("; a vocabulary grows with train.load alone, and never shrinks.")
    assert "\n" not in message


@pytest.mark.parametrize("vocab_size", [WITHIN_PADDING, BEYOND_PADDING])
def test_a_run_does_not_go_on_with_other_tokens(vocab_size: int, checkpoint: Path) -> None:
    config = _run(vocab_size)
    message = rf"vocab_size: checkpoint 131, run {vocab_size}\. Use.*grows with train\.load alone"
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(checkpoint).require_same_model(config, checkpoint)
    with (
        trainer(model=_model(vocab_size)) as resumed,
        pytest.raises(CheckpointError, match=message),
    ):
        resumed.resume(checkpoint)


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_shards_are_those_of_one_table(tensor: int) -> None:
    table = torch.randn(256, 16, generator=torch.Generator().manual_seed(3))
    rows = 384 // tensor
    tensors = lazily({EMBEDDING: table})

    def shard(rank: int, size: int) -> ShardedTensor:
        local = torch.empty(384 // size, 16)
        return ShardedTensor.from_rank_offsets(EMBEDDING, local, (0, rank, size))

    whole = grown_shards(tensors, VOCABULARY, {"embedding": shard(0, 1)})["embedding"]
    for rank in range(tensor):
        wanted = {"embedding": shard(rank, tensor), "copy": shard(rank, tensor)}
        for values in grown_shards(tensors, VOCABULARY, wanted).values():
            assert torch.equal(values, whole[rank * rows : (rank + 1) * rows])

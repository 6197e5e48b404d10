"""One global order, however it is divided, resumed or read ahead."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import LanguageConfig, ModelConfig
from vila_mc.data.loader import TrainingData
from vila_mc.data.tokenizer import train_tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import Microbatch

BATCH = 12


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], tokenizer_path: Path
) -> DataConfig:
    """Two sets; the third token of each sample tells which one it is."""
    folder = tmp_path_factory.mktemp("sets")
    entries = (
        BlendEntry(path=make_set(folder / "large", 20, first_id=100), weight=3),
        BlendEntry(path=make_set(folder / "small", 5, first_id=200), weight=1),
    )
    return DataConfig(blend=entries, tokenizer=tokenizer_path, sequence_length=16, workers=0)


def opened(
    data: DataConfig, model: ModelConfig, *, rank: int = 0, size: int = 1, micro: int = 1
) -> TrainingData:
    return TrainingData(
        data,
        model,
        micro_batch=micro,
        global_batch=BATCH,
        data_rank=rank,
        data_size=size,
        needs_images=rank == 0,
    )


def names(microbatches: list[Microbatch]) -> list[int]:
    """The token of each sample that is its own (after BOS, a prompt token and 4 visual tokens)."""
    return [token for batch in microbatches for token in batch.tokens[:, 6].tolist()]


def test_order_does_not_depend_on_how_it_is_divided(data: DataConfig, model: ModelConfig) -> None:
    expected = names(opened(data, model).microbatches(24))
    assert len(set(expected)) > 8
    for size, micro in [(1, 3), (2, 1), (2, 6), (3, 2), (4, 3), (12, 1)]:
        ranks = [opened(data, model, rank=rank, size=size, micro=micro) for rank in range(size)]
        found = [names(rank.microbatches(24)) for rank in ranks]
        assert list(chain.from_iterable(found)) == expected
        assert {len(rank.microbatches(24)) for rank in ranks} == {BATCH // size // micro}


@pytest.mark.parametrize("workers", [0, 3])
def test_iterate_goes_on_from_any_position(
    data: DataConfig, model: ModelConfig, workers: int
) -> None:
    straight = opened(data, model)
    with opened(replace(data, workers=workers), model, micro=4) as resumed:
        steps = resumed.iterate(5)
        for step in range(4):
            assert names(next(steps)) == names(straight.microbatches(5 + step * BATCH))


def test_threads_give_the_same_tensors(data: DataConfig, model: ModelConfig) -> None:
    with opened(replace(data, workers=2), model, micro=2) as threaded:
        ahead = next(threaded.iterate(0))
    for one, other in zip(ahead, opened(data, model, micro=2).microbatches(0), strict=True):
        for field in ("tokens", "labels", "images", "image_starts"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        assert one.images.shape == (2, 3, 56, 56)


def test_reading_ahead_is_bounded(
    data: DataConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    with opened(replace(data, workers=2), model, micro=4) as threaded:
        load = threaded._load
        monkeypatch.setattr(threaded, "_load", lambda draws: (loaded.append(draws), load(draws))[1])
        next(threaded.iterate(0))
    assert len(loaded) <= 3 * (1 + 2)  # whole steps of 3 that cover 3 + 2 x 2 microbatches


def test_shares_of_the_blend(data: DataConfig, model: ModelConfig) -> None:
    one = opened(data, model)
    drawn = [name for start in range(0, 240, BATCH) for name in names(one.microbatches(start))]
    assert abs(sum(name >= 200 for name in drawn) - 60) <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_no_longer_decodes_names_dataset_and_sample(
    tmp_path: Path,
    make_set: Callable[..., Path],
    data: DataConfig,
    model: ModelConfig,
    workers: int,
) -> None:
    prefix = make_set(tmp_path / "broken", 1)
    file = Path(f"{prefix}.bin")
    content = file.read_bytes()
    file.write_bytes(content[:8] + bytes(40) + content[48:])
    broken = replace(data, blend=(BlendEntry(path=prefix),), workers=workers)
    with opened(broken, model) as loader, pytest.raises(DataError, match="broken sample 0"):
        next(loader.iterate(0))


def test_batch_that_does_not_divide(data: DataConfig, model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"train.global_batch 12 .* 5 x 1"):
        opened(data, model, micro=5)


def test_settings_that_are_missing(data: DataConfig, model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.blend is empty"):
        opened(DataConfig(tokenizer=data.tokenizer), model)
    with pytest.raises(ConfigError, match=r"data\.tokenizer is not set"):
        opened(DataConfig(blend=data.blend), model)


def test_model_with_another_vocabulary(data: DataConfig, model: ModelConfig) -> None:
    larger = ModelConfig(
        vision=model.vision,
        language=LanguageConfig(width=16, ffn=32, heads=2, kv_heads=2, vocab_size=500),
    )
    with pytest.raises(DataError, match=r"has 400 tokens, but model\.language\.vocab_size is 500"):
        opened(data, larger)


def test_set_of_another_tokenizer(tmp_path: Path, data: DataConfig, model: ModelConfig) -> None:
    other = tmp_path / "other.model"
    train_tokenizer(
        [f"some other words {n} {chr(97 + n % 26) * 9}" for n in range(400)], other, 400
    )
    with pytest.raises(DataError, match=r"large was made with another tokenizer .* Re-run"):
        opened(replace(data, tokenizer=other), model)

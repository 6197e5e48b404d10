"""What does not fit in memory is refused before it is loaded; what fits decides the batch."""

from pathlib import Path

import pytest
import torch

from tests.support.tiny import tiny_run
from tests.unit.evaluation.conftest import Subject
from vila_mc.checkpoint.whole import to_evaluate
from vila_mc.config.load import load_run
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.evaluation import room as room_module
from vila_mc.evaluation.decoder import Decoder, encode_prompt
from vila_mc.evaluation.room import MOST_ROWS, Room
from vila_mc.flow import RawText
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.answering_memory import cached_bytes, passing_bytes, weight_bytes
from vila_mc.topology.layout import Layout

GIB = 2**30
POSITIONS = 50
RECIPE = Path(__file__).parents[3] / "examples" / "pretrain_7b.yaml"


@pytest.fixture
def alone(subject: Subject) -> Ranks:
    layout = Layout.of(tiny_run().parallel, 1)
    groups = subject.model.groups
    return Ranks(layout, layout.coordinates(0), 0, torch.device("cpu"), groups)


def fifty(model: ModelConfig) -> int:
    return POSITIONS


def large_run() -> RunConfig:
    """7 B weights: 32 layers, 4,096 wide, as the recipes have them."""
    language = dict(layers=32, width=4096, ffn=11008, heads=32, kv_heads=32, vocab_size=32000)
    return tiny_run(model={"language": language | {"max_positions": 4096}})


def test_what_is_planned_is_what_is_held(subject: Subject) -> None:
    config = subject.model.run_config
    held = sum(weight.numel() * weight.element_size() for weight in subject.model.parameters())
    assert weight_bytes(config) == held
    prompt = encode_prompt([RawText("one two", is_trained=False)], subject.tokenizer)
    cache = Decoder(subject.model, [prompt], 5).cache
    tensors = [tensor for pair in cache._held.values() for tensor in pair]
    assert cached_bytes(config) * cache.capacity == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize(
    ("free_gib", "given", "rows"),
    [(1000, None, MOST_ROWS), (1000, 64, 64), (28.6, None, 2), (28.6, 2, 2)],
)
def test_the_batch_is_what_fits(
    free_gib: float,
    given: int | None,
    rows: int,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = large_run()
    row = POSITIONS * (cached_bytes(config) + passing_bytes(config))
    usable = weight_bytes(config) + 2.5 * row if free_gib < 100 else free_gib * GIB
    monkeypatch.setattr(room_module, "free_bytes", lambda device: usable / room_module._USABLE)
    room = Room(fifty, given)
    room.settle(config, alone)
    assert room.rows == rows
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("each rank takes about 25.2 GiB for weights and ")
    assert f" GiB to read {rows} x {POSITIONS} positions, of " in line


@pytest.mark.parametrize(
    ("share", "given", "message", "option"),
    [
        (0.5, None, r"does not fit: each rank takes about 25\.2 GiB .*\. Let more", "tensor"),
        (0.5, 8, r"\. Let more ranks hold one copy together, or free memory\.$", "tensor"),
        (
            1.01,
            200,
            r"read 200 x 50 positions, .*\. Ask fewer at a time, or let",
            "batch",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    share: float,
    given: int | None,
    message: str,
    option: str,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = large_run()
    free = share * weight_bytes(config) / room_module._USABLE
    monkeypatch.setattr(room_module, "free_bytes", lambda device: free)
    with pytest.raises(ConfigError, match=message) as caught:
        Room(fifty, given).settle(config, alone)
    assert caught.value.option == option


def test_a_small_model_says_nothing(alone: Ranks, capsys: pytest.CaptureFixture[str]) -> None:
    room = Room(fifty)
    room.settle(tiny_run(), alone)
    assert (room.rows, capsys.readouterr().err) == (MOST_ROWS, "")


@pytest.mark.parametrize(("tensor", "gib"), [(1, 26.3), (2, 13.2), (8, 3.4)])
def test_what_a_rank_of_the_7b_holds(tensor: int, gib: float) -> None:
    config = to_evaluate(load_run([RECIPE], {}), tensor)
    assert round(weight_bytes(config) / GIB, 1) == gib
    assert round(4096 * cached_bytes(config) / GIB, 1) == 4 / tensor

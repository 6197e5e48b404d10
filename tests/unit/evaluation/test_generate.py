"""Greedy answers: each as if it were asked alone, up to EOS, within the model's positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.evaluation.conftest import Subject
from vila_mc.config.families import ImageMode
from vila_mc.config.model import VisionConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.images import load_squares
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.decoder import encode_prompt, encoded_positions
from vila_mc.evaluation.generate import generate, prompt_positions
from vila_mc.flow import RawImage, RawPiece, RawText


@dataclass(frozen=True)
class WithEos:
    """A tokenizer for which another token is the last."""

    tokenizer: Any
    eos_id: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def prompts(subject: Subject) -> list[tuple[RawPiece, ...]]:
    """Of different lengths, with no, one and two images."""
    red, blue = (RawImage(subject.images / name, name) for name in ("red.png", "blue.png"))
    return [
        (RawText("one two", is_trained=False),),
        (red, RawText("what colour is this?", is_trained=False)),
        (red, blue, RawText("b", is_trained=False)),
        (blue, RawText("what colour is this?", is_trained=False)),
    ]


def ask(subject: Subject, asked: Sequence[Sequence[RawPiece]], count: int = 6, **how: Any) -> Any:
    return generate(subject.model, how.get("tokenizer", subject.tokenizer), asked, count)


def recomputed(subject: Subject, asked: Sequence[RawPiece], count: int) -> tuple[int, ...]:
    """A greedy answer, every token of which reads all positions anew."""
    shape = subject.model.run_config.model
    pieces = encode_prompt(asked, subject.tokenizer)
    used = encoded_positions(pieces, shape)
    batch = collate([[pieces]], shape, used + count, needs_images=True)
    with torch.inference_mode():
        for at in range(used, used + count):
            tokens, labels = batch.tokens[:, :at], batch.labels[:, :at]
            logits = subject.model(replace(batch, tokens=tokens, labels=labels), with_loss=False)
            batch.tokens[0, at] = logits[0, -1].argmax()
    return tuple(batch.tokens[0, used:].tolist())


def test_the_cache_changes_no_token(subject: Subject) -> None:
    expected = [recomputed(subject, asked, 40) for asked in prompts(subject)]
    assert ask(subject, prompts(subject), 40) == expected
    assert len(set(expected[0])) > 3  # or a position that is read wrongly would not show


def test_an_answer_does_not_depend_on_what_else_is_asked(subject: Subject) -> None:
    together = ask(subject, prompts(subject))
    alone = [ask(subject, [asked])[0] for asked in prompts(subject)]
    assert together == alone
    assert len(set(together)) > 2  # or it would prove nothing
    assert [len(answer) for answer in together] == [6] * 4


def test_the_first_tokens_of_a_longer_answer_are_the_shorter_one(subject: Subject) -> None:
    long, short = (ask(subject, prompts(subject), count) for count in (6, 2))
    assert [answer[:2] for answer in long] == short


def test_a_picture_in_tiles_is_asked_about_as_its_tiles_are(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answer as when each tile is given as an image of its own."""
    config = subject.model.run_config
    vision, question = config.model.vision, RawText("what is this?", is_trained=False)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 110, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")

    def see(image_mode: ImageMode) -> VisionConfig:
        seen = replace(vision, image_mode=image_mode)
        model = replace(config.model, vision=seen)
        data = replace(config.data, sequence_length=64)
        monkeypatch.setattr(subject.model, "run_config", replace(config, model=model, data=data))
        return seen

    squares = load_squares((tmp_path / "wide.png").read_bytes(), see("tiles"))
    assert len(squares) > 2
    whole = [RawImage(tmp_path / "wide.png", "wide"), question]
    in_tiles = ask(subject, [whole])
    model = subject.model.run_config.model
    taken = prompt_positions(whole, subject.tokenizer, model)
    see("resize")
    apart: list[RawPiece] = []
    for number, square in enumerate(squares):
        Image.fromarray(square.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
        apart.append(RawImage(tmp_path / f"{number}.png", "a tile"))
    assert in_tiles == ask(subject, [[*apart, question]])
    assert taken == prompt_positions([*apart, question], subject.tokenizer, model)


def test_an_answer_ends_with_eos_and_the_others_go_on(subject: Subject) -> None:
    whole = ask(subject, prompts(subject))
    eos = whole[1][2]
    ended = ask(subject, prompts(subject), tokenizer=WithEos(subject.tokenizer, eos))
    for answer, full in zip(ended, whole, strict=True):
        until = full.index(eos) + 1 if eos in full else len(full)
        assert answer == full[:until]
    assert len(ended[1]) <= 3
    assert max(map(len, ended)) == 6


def test_what_does_not_fit_is_refused(subject: Subject) -> None:
    asked = [(RawText("word " * 320, is_trained=False),)]
    with pytest.raises(ConfigError, match=r"a prompt of \d+ positions and 6 new tokens exceed"):
        ask(subject, asked)
    with pytest.raises(ConfigError, match=r"a prompt of \d+ positions and 320 new tokens"):
        ask(subject, prompts(subject), 320)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "missing image"), (b"", "broken.png"), (b"no image", "broken.png")],
)
def test_an_image_that_cannot_be_used_is_one_line(
    subject: Subject, tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "broken.png"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        ask(subject, [(RawImage(path, "broken.png"), RawText("what?", is_trained=False))])
    assert str(caught.value).startswith("a prompt cannot be used: ")
    assert "\n" not in str(caught.value)

"""Does a small model learn to compare two pictures? The quickstart's, and how its weights start.

"Are the two colours the same?" about two patches of 8 colours with noise, drawn anew for every
sample; 200 held-out questions, half of them yes. Each arm trains from the same seed.
"""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from claims import Claim, parser, report
from PIL import Image

from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.data.batches.collate import collate
from vila_mc.data.chat_templates import BUILT_IN, TemplateName, conversation_pieces, prompt
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.data.turns import Turn
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.generate import generate
from vila_mc.flow import EncodedSample, RawImage, RawSample
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

MODEL = Path(__file__).parents[1] / "examples/quickstart/model.yaml"
COLOURS = {
    **dict(red=(220, 40, 40), green=(40, 180, 60), blue=(50, 80, 220), yellow=(240, 210, 40)),
    **dict(purple=(160, 60, 190), orange=(240, 140, 30), cyan=(40, 200, 210), brown=(120, 80, 50)),
}
SAME, WHICH = "Are the two colours the same?", "Which colour is it?"
TEMPLATE: TemplateName = "vicuna_v1"
BATCH, QUESTIONS, LOOKS = 32, 200, (4_000, 8_000, 16_000)
"""Samples of a step; held-out questions; samples seen when they are asked."""
VOCABULARY, LENGTH = 480, 80


class Pictures:
    """Questions about patches of colour, from one seed."""

    def __init__(self, seed: int) -> None:
        self.choose, self.noise = random.Random(seed), np.random.default_rng(seed)

    def same(self) -> tuple[list[RawImage], str, str]:
        """Two patches, of one colour as often as not."""
        first, second = self.choose.sample(list(COLOURS), 2)
        if self.choose.random() < 0.5:
            second = first
        answer = "Yes" if first == second else "No"
        return [self._patch(first), self._patch(second)], SAME, answer

    def which(self) -> tuple[list[RawImage], str, str]:
        """One patch."""
        colour = self.choose.choice(list(COLOURS))
        return [self._patch(colour)], WHICH, colour

    def _patch(self, colour: str) -> RawImage:
        pixels = np.array(COLOURS[colour]) + self.noise.normal(0, 12, (28, 28, 3))
        pixels += self.noise.normal(0, 8, (1, 1, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        return RawImage(file.getvalue(), colour)


def _tokenizer(folder: Path) -> Tokenizer:
    words = [SAME, WHICH, "Yes", "No", *COLOURS] * 40
    system = [f"{BUILT_IN[TEMPLATE].system}\nUSER: ASSISTANT:"] * 200
    train_tokenizer([*system, *words], folder / "tokenizer.model", VOCABULARY)
    return Tokenizer(folder / "tokenizer.model")


def _samples(pictures: Pictures, tokenizer: Tokenizer, mixed: bool) -> Iterator[EncodedSample]:
    while True:
        is_single = mixed and pictures.choose.random() < 0.5
        images, question, answer = pictures.which() if is_single else pictures.same()
        turns = [Turn("user", "<image>\n" * len(images) + question), Turn("assistant", answer)]
        pieces = conversation_pieces(TEMPLATE, turns, images)
        yield encode_sample(RawSample(pieces=pieces, place=0), tokenizer, 10**6)


def _right(model: VilaModel, tokenizer: Tokenizer) -> float:
    """Share of the held-out questions that are answered rightly."""
    held_out, right = Pictures(seed=1), 0
    end = AnswerEnd.of(TEMPLATE, tokenizer)
    model.eval()
    for _ in range(QUESTIONS // 50):
        asked = [held_out.same() for _ in range(50)]
        prompts = [prompt(TEMPLATE, question, images) for images, question, _ in asked]
        answers = generate(model, tokenizer, prompts, 8, end)
        right += sum(
            end.words(ids) == wanted for ids, (*_, wanted) in zip(answers, asked, strict=True)
        )
    model.train()
    return right / QUESTIONS


def arm(name: str, init_std: float | None, mixed: bool, seed: int) -> list[Claim]:
    """Right answers after each of ``LOOKS`` samples."""
    written = {
        "train.init_std": "none" if init_std is None else str(init_std),
        "train.global_batch": str(BATCH),
        "train.micro_batch": str(BATCH),
        "train.steps": str(LOOKS[-1] // BATCH),
        "train.seed": str(seed),
        "model.language.vocab_size": str(VOCABULARY),
        "data.sequence_length": str(LENGTH),
        "optimizer.lr": "1e-3",
    }
    config: RunConfig = load_run([MODEL], written)
    claims, pictures = [], Pictures(seed=2 + seed)
    with TemporaryDirectory() as folder, distributed(config.parallel, seed=seed) as ranks:
        tokenizer = _tokenizer(Path(folder))
        stages = build_stages(config, ranks)
        trainer = Trainer(config, ranks, stages)
        samples = _samples(pictures, tokenizer, mixed)
        for step in range(1, config.train.steps + 1):
            rows = [[next(samples).pieces] for _ in range(BATCH)]
            trainer.step([collate(rows, config.model, LENGTH, True)])
            if step * BATCH in LOOKS:
                share = 100 * _right(stages[0], tokenizer)
                claims.append(Claim(f"{name}, {step * BATCH:,} samples", share, "% right"))
                print(f"{claims[-1].claim}: {share:.1f} %", flush=True)
    return claims


def main() -> int:
    """Train each arm and print the table."""
    made = parser(__doc__)
    made.add_argument("--seed", type=int, default=42, help="of weights and training pictures")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    claims = []
    for name, init_std, mixed in (
        ("weights at 0.02", 0.02, False),
        ("weights by width", None, False),
        ("weights at 0.02, half of it which colour", 0.02, True),
    ):
        claims += arm(name, init_std, mixed, arguments.seed)
    return report(claims, arguments)


if __name__ == "__main__":
    raise SystemExit(main())

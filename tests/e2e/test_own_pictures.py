"""The road of docs/your_own_data.md: from a folder of pictures to right answers about new ones.

One small model learns to name colours and patterns and to compare the colours of two pictures.
That the last is learned at all is half of the test: an image that is lost where two stand in a
sample leaves a comparison at chance, and nothing else that is asked here.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.support.launching import REPOSITORY, python_path

COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 210)}
PATTERNS = ("plain", "striped", "dotted")
CHANCE = {"Which colour is it?": 1 / 3, "Which pattern is it?": 1 / 3, "Is it one colour?": 1 / 2}
COLOUR, PATTERN, COMPARISON = CHANCE
NUM_TRAINING, NUM_HELD_OUT, NUM_PAIRS = 150, 20, 600
TEMPLATE = 'first: "USER: "\nnext: "USER: "\nclose: " ASSISTANT: "\n'
SMALLER = {  # than preset:tiny, for pictures of 24 pixels and answers of a word
    "model.vision.image_size": 24,
    "model.language.layers": 2,
    "data.sequence_length": 128,
}


@dataclass(frozen=True)
class Picture:
    """One drawing, and what it shows."""

    file: str
    colour: str
    pattern: str


def draw(folder: Path, number: int, choose: random.Random) -> Picture:
    """One of the colours, a little off, under a pattern that begins anywhere."""
    colour, pattern = choose.choice(list(COLOURS)), choose.choice(PATTERNS)
    shade = [value + choose.randint(-20, 20) for value in COLOURS[colour]]
    image = Image.new("RGB", (40, 40), (shade[0], shade[1], shade[2]))
    pen, start = ImageDraw.Draw(image), choose.randint(0, 5)
    if pattern == "striped":
        for x in range(start, 40, 6):
            pen.rectangle((x, 0, x + 2, 40), fill="white")
    if pattern == "dotted":
        for x in range(start, 40, 8):
            for y in range(choose.randint(0, 5), 40, 8):
                pen.ellipse((x, y, x + 3, y + 3), fill="white")
    picture = Picture(f"{number:03}.png", colour, pattern)
    image.save(folder / picture.file)
    return picture


def pairs(
    pictures: Sequence[Picture], count: int, choose: random.Random
) -> Iterator[tuple[Picture, Picture]]:
    """Two different pictures; every other time of one colour."""
    for number in range(count):
        first = choose.choice(pictures)
        others = [one for one in pictures if (one.colour == first.colour) == (number % 2 == 0)]
        yield first, choose.choice([one for one in others if one != first])


def questions(
    pictures: Sequence[Picture], num_pairs: int, choose: random.Random
) -> list[tuple[str, tuple[str, ...], str]]:
    """Question, images and answer."""
    asked: list[tuple[str, tuple[str, ...], str]] = []
    asked += [(COLOUR, (one.file,), one.colour) for one in pictures]
    asked += [(PATTERN, (one.file,), one.pattern) for one in pictures]
    for first, second in pairs(pictures, num_pairs, choose):
        answer = "yes" if first.colour == second.colour else "no"
        asked.append((COMPARISON, (first.file, second.file), answer))
    return asked


def run(*command: object, **options: str) -> str:
    """A command as a person types it, in the folder of the raw data."""
    name, *rest = command
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / f"{name}.py"), *map(str, rest)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_chat(tmp_path: Path) -> None:
    choose = random.Random(0)
    images, raw, chat = tmp_path / "images", tmp_path / "chat.jsonl", tmp_path / "chat"
    images.mkdir()
    drawn = [draw(images, number, choose) for number in range(NUM_TRAINING + NUM_HELD_OUT)]
    training, held_out = drawn[:NUM_TRAINING], drawn[NUM_TRAINING:]
    records = [
        {"images": shown, "messages": [
            {"role": "user", "content": "<image>\n" * len(shown) + question},
            {"role": "assistant", "content": answer},
        ]}
        for question, shown, answer in questions(training, NUM_PAIRS, choose)
    ]  # fmt: skip
    raw.write_text("".join(json.dumps(record) + "\n" for record in records))
    template, tokenizer = tmp_path / "template.yaml", tmp_path / "tokenizer.model"
    template.write_text(TEMPLATE)

    words = ("--template", template)
    run("train_tokenizer", "--input", raw, "--output", tokenizer, "--vocab-size", 320, *words)
    known = ("--tokenizer", tokenizer)
    run("preprocess_data", "conversations", "--input", raw, "--images", images,
        "--output", chat, *known, *words)  # fmt: skip
    run("inspect_data", "show", chat, 0, *known, "--output", tmp_path / "sample.html")
    smaller = [word for name, value in SMALLER.items() for word in (f"--{name}", value)]
    run("train", "--ranks", 1, "--config", "preset:tiny", *smaller, "--train.phase", "sft",
        "--train.steps", 300, "--data.tokenizer", tokenizer,
        "--data.blend", f"[{{path: {chat}}}]", "--train.output", tmp_path / "run")  # fmt: skip

    asked = questions(held_out, NUM_HELD_OUT, choose)
    lines = [
        "\n".join(["/new", *(f"/image {images / file}" for file in shown), question])
        for question, shown, _ in asked
    ]
    answers = run("ask", "--checkpoint", tmp_path / "run", input="\n".join(lines)).splitlines()
    right = dict.fromkeys(CHANCE, 0)
    for (question, _, expected), answer in zip(asked, answers, strict=True):
        right[question] += answer == expected
    for question, chance in CHANCE.items():  # 17 of 20 by luck at 1/2: once in 800 times
        assert right[question] >= 17, (question, f"chance {chance:.2f}", right)

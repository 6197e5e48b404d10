"""Writes a small, real vision-language corpus in the formats that users have.

    python examples/digits.py OUT_DIR

The pictures are the 1,797 handwritten 8x8 digits that come with scikit-learn (16 grey levels),
kept as 8-bit PNG files of 28x28 pixels (bicubic). The last 360 are held out: they appear in
``eval.jsonl`` and nowhere else. Every other picture is written a few more times, turned and shifted
a little, since 1,437 pictures are few. The same arguments always give the same bytes.

| file | format |
|---|---|
| images/digit-0000.png ... | every picture; all other files name pictures in this folder |
| pairs.jsonl | image and caption |
| interleaved.jsonl | MMC4-like documents |
| conversations.json | LLaVA conversations about one or two images |
| instructions.jsonl | LLaVA conversations without images |
| text.jsonl | plain text |
| tokenizer_text.txt | each distinct line of the training text above, to train a tokenizer on |
| eval.jsonl | questions about held-out images, with answers and chance levels |

A question of ``eval.jsonl`` follows its images as in ``conversations.json``: one ``<image>`` line
per image, then the question. ``chance`` is what the best constant answer scores when digits are
drawn evenly: 1/10 for ``which_digit``; 1/5 for ``larger_digit``, whose 360 questions hold each of
the 45 pairs of distinct digits eight times, four in each order, so that "9" is right for 72 of
them. A model that reads only one of the two images cannot expect more than 0.51.
"""

import argparse
import io
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.config.options import ErrorRaisingParser
from vila_mc.errors import ConfigError, SetupError, run_cli
from vila_mc.files import write_whole

SEED = 1797
NUM_HELD_OUT = 360
IMAGE_SIDE = 28
GREY_LEVELS = 16  # the brightest value in scikit-learn's set

NUM_VARIANTS = 7  # turned and shifted copies of each training picture
MAX_TURN = 15.0  # degrees
MAX_SHIFT = 2.5  # pixels of the 28x28 picture
NUM_DOCUMENTS = 2400
NUM_TWO_IMAGE = 12000
NUM_MULTI_TURN = 1000
NUM_TEXTS = 1500
QUESTIONS_PER_PAIR = 8  # held-out questions for each pair of distinct digits

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
VQA_SUFFIX = "Answer the question using a single word or phrase."
WHICH_DIGIT = f"Which digit is this?\n{VQA_SUFFIX}"
LARGER_DIGIT = f"Which digit is larger, the first or the second?\n{VQA_SUFFIX}"
CHANCE = {"which_digit": 0.1, "larger_digit": 0.2}

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DISTINCT_PAIRS = tuple(itertools.combinations(range(10), 2))

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Digit:
    """One picture of a handwritten digit."""

    name: str
    """File name within images/."""
    value: int
    """The digit it shows."""


# --- the words ------------------------------------------------------------------------------


def spelled(value: int, rng: random.Random) -> str:
    """A digit as a word or as a numeral."""
    return rng.choice((WORDS[value], str(value)))


def with_article(value: int, rng: random.Random) -> str:
    """``a seven``, ``an 8``."""
    return f"{'an' if value == 8 else 'a'} {spelled(value, rng)}"


def caption(value: int, rng: random.Random) -> str:
    """A short caption that names the digit."""
    return rng.choice(
        (
            f"the digit {spelled(value, rng)}",
            f"the number {spelled(value, rng)}, written by hand",
            f"{with_article(value, rng)} in grey on black",
            f"a handwritten {spelled(value, rng)}",
            f"a small picture of {with_article(value, rng)}",
        )
    )


def relation(first: int, second: int, rng: random.Random) -> str:
    """A sentence about two digits: which is larger, their sum or their difference."""
    low, high = sorted((first, second))
    a, b = spelled(high, rng), spelled(low, rng)
    choices = [
        f"{first} + {second} = {first + second}.",
        f"{high} - {low} = {high - low}.",
        f"The sum of {spelled(first, rng)} and {spelled(second, rng)} is {first + second}.",
    ]
    if low == high:
        choices.append(f"The two digits are the same: {a}.")
    else:
        choices += [f"{a.capitalize()} is larger than {b}.", f"The larger of the two is {high}."]
    return rng.choice(choices)


def fact(value: int, rng: random.Random) -> str:
    """A sentence about one digit: its word, its neighbours, whether it is even."""
    name = spelled(value, rng)
    choices = [
        f"{name.capitalize()} is {parity(value)}.",
        f"The numeral {value} is read as {WORDS[value]}.",
    ]
    if value < 9:
        choices.append(f"After {name} comes {spelled(value + 1, rng)}.")
    if value > 0:
        choices.append(f"Before {name} comes {spelled(value - 1, rng)}.")
    return rng.choice(choices)


def parity(value: int) -> str:
    """``even`` or ``odd``."""
    return "odd" if value % 2 else "even"


# --- the training files ---------------------------------------------------------------------


def pairs(digits: Sequence[Digit], rng: random.Random) -> Iterator[Record]:
    """Image-caption pairs: every training image with a caption."""
    for digit in digits:
        yield {"image": digit.name, "caption": caption(digit.value, rng)}


def interleaved(digits: Sequence[Digit], rng: random.Random) -> Iterator[Record]:
    """MMC4-like documents of two to four images; each image stands before its own sentence."""
    for _ in range(NUM_DOCUMENTS):
        shown = rng.sample(digits, rng.randint(2, 4))
        sentences: list[str] = []
        image_info: list[Record] = []
        if rng.random() < 0.5:
            sentences.append(f"Here are {WORDS[len(shown)]} digits, written by hand.")
        for position, digit in enumerate(shown):
            image_info.append(
                {
                    "image_name": digit.name,
                    "raw_url": "",
                    "matched_text_index": len(sentences),
                    "matched_sim": 1.0,  # known, where MMC4 estimates it
                }
            )
            sentences.append(introduction(digit.value, rng))
            if position > 0:
                sentences.append(relation(shown[position - 1].value, digit.value, rng))
        values = [digit.value for digit in shown]
        sentences.append(f"Together they make {sum(values)}; the largest is {max(values)}.")
        rng.shuffle(image_info)  # as in MMC4, where they come in no particular order
        yield {"text_list": sentences, "image_info": image_info}


def introduction(value: int, rng: random.Random) -> str:
    """The sentence that belongs to an image of a document."""
    return rng.choice(
        (
            f"This is {with_article(value, rng)}.",
            f"This picture shows the digit {spelled(value, rng)}.",
            f"Here somebody wrote {with_article(value, rng)}.",
        )
    )


def conversations(digits: Sequence[Digit], rng: random.Random) -> Iterator[Record]:
    """LLaVA conversations: one image and one question, several turns, two images."""
    for number, digit in enumerate(digits):
        yield conversation(f"which-{number}", [digit], [(WHICH_DIGIT, str(digit.value))])
        yield conversation(f"about-{number}", [digit], [question_about(digit.value, rng)])
    for number in range(NUM_MULTI_TURN):
        digit = rng.choice(digits)
        turns = [(WHICH_DIGIT, str(digit.value)), *follow_ups(digit.value, rng)]
        yield conversation(f"turns-{number}", [digit], turns)
    by_value = group_by_value(digits)
    for number in range(NUM_TWO_IMAGE):
        first, second = rng.sample(DISTINCT_PAIRS[number % len(DISTINCT_PAIRS)], 2)
        images = [rng.choice(by_value[value]) for value in (first, second)]
        yield conversation(f"two-{number}", images, [question_about_two(first, second, rng)])


def conversation(name: str, images: Sequence[Digit], turns: Iterable[tuple[str, str]]) -> Record:
    """A record in LLaVA's format; the images stand before the first question."""
    record: Record = {"id": name}
    if len(images) == 1:
        record["image"] = images[0].name
    elif images:
        record["images"] = [image.name for image in images]
    spoken: list[Record] = []
    for question, answer in turns:
        markers = "" if spoken else "<image>\n" * len(images)
        spoken.append({"from": "human", "value": markers + question})
        spoken.append({"from": "gpt", "value": answer})
    return record | {"conversations": spoken}


def question_about(value: int, rng: random.Random) -> tuple[str, str]:
    """A question about one image in other words, and its answer."""
    asked = rng.randrange(10)
    claimed = rng.choice((value, asked))
    name = spelled(value, rng)
    return rng.choice(
        (
            ("Which digit is this?", f"This is the digit {name}."),
            ("What do you see in this picture?", f"I see a handwritten {name}."),
            (f"What number is written here?\n{VQA_SUFFIX}", str(value)),
            (f"Write this digit as a word.\n{VQA_SUFFIX}", WORDS[value]),
            (f"Is this the digit {claimed}?\n{VQA_SUFFIX}", "Yes" if claimed == value else "No"),
        )
    )


def follow_ups(value: int, rng: random.Random) -> list[tuple[str, str]]:
    """One or two later questions, which lean on the answers before them."""
    number = rng.randrange(10)
    choices = [
        ("Is it even or odd?", f"It is {parity(value)}."),
        ("How is it written as a word?", f"It is written {WORDS[value]}."),
        (f"What is it plus {number}?", f"{value} + {number} = {value + number}."),
    ]
    return rng.sample(choices, rng.randint(1, 2))


def question_about_two(first: int, second: int, rng: random.Random) -> tuple[str, str]:
    """A question about two images; three in four are the one that is evaluated."""
    larger, smaller = max(first, second), min(first, second)
    if rng.random() < 0.75:
        return LARGER_DIGIT, str(larger)
    return rng.choice(
        (
            (f"Which digit is smaller, the first or the second?\n{VQA_SUFFIX}", str(smaller)),
            (f"What is the sum of the two digits?\n{VQA_SUFFIX}", str(first + second)),
            ("Which two digits are these?", f"The first is {first} and the second is {second}."),
        )
    )


def instructions(rng: random.Random) -> Iterator[Record]:
    """Text-only conversations, every question once, in LLaVA's format."""
    turns: list[tuple[str, str]] = []
    for first, second in itertools.permutations(range(10), 2):
        larger, smaller = max(first, second), min(first, second)
        turns += [
            (f"Which is larger, {first} or {second}?\n{VQA_SUFFIX}", str(larger)),
            (f"Which is smaller, {first} or {second}?\n{VQA_SUFFIX}", str(smaller)),
            (
                f"Which digit is larger, {WORDS[first]} or {WORDS[second]}?",
                f"{WORDS[larger].capitalize()} is larger than {WORDS[smaller]}.",
            ),
        ]
    for first, second in itertools.product(range(10), repeat=2):
        turns.append((f"What is {first} plus {second}?\n{VQA_SUFFIX}", str(first + second)))
    for value in range(10):
        turns += [
            (f"Is {value} even or odd?", f"{value} is {parity(value)}."),
            (f"How is {value} written as a word?\n{VQA_SUFFIX}", WORDS[value]),
            (f"Write {WORDS[value]} as a numeral.\n{VQA_SUFFIX}", str(value)),
            (f"What comes after {value}?", f"After {value} comes {value + 1}."),
        ]
    rng.shuffle(turns)
    for number, turn in enumerate(turns):
        yield conversation(f"text-{number}", [], [turn])


def texts(rng: random.Random) -> Iterator[Record]:
    """Plain text about digits and arithmetic."""
    for _ in range(NUM_TEXTS):
        first, second = rng.randrange(10), rng.randrange(10)
        sentences = [fact(first, rng), fact(second, rng), relation(first, second, rng)]
        yield {"text": " ".join(sentences[: rng.randint(2, 3)])}


def tokenizer_lines(files: dict[str, list[Record]]) -> list[str]:
    """Each distinct line of the training text, and the words of the chat template."""
    spoken = [
        turn["value"].replace("<image>\n", "")
        for record in files["conversations.json"] + files["instructions.jsonl"]
        for turn in record["conversations"]
    ]
    written = [
        SYSTEM_PROMPT,
        "USER: ASSISTANT:",
        *(record["caption"] for record in files["pairs.jsonl"]),
        *(line for record in files["interleaved.jsonl"] for line in record["text_list"]),
        *(record["text"] for record in files["text.jsonl"]),
    ]
    return list(dict.fromkeys("\n".join(written + spoken).split("\n")))


# --- the held-out questions -----------------------------------------------------------------


def held_out_questions(digits: Sequence[Digit], rng: random.Random) -> Iterator[Record]:
    """``which_digit`` for every held-out digit, then ``larger_digit`` for balanced pairs."""
    for number, digit in enumerate(digits):
        yield held_out_question("which_digit", number, [digit], WHICH_DIGIT, digit.value)
    supply = {value: itertools.cycle(group) for value, group in group_by_value(digits).items()}
    shown = []
    for pair in DISTINCT_PAIRS:
        for turn in range(QUESTIONS_PER_PAIR):
            values = pair if turn % 2 else pair[::-1]
            shown.append([next(supply[value]) for value in values])
    rng.shuffle(shown)
    for number, images in enumerate(shown):
        larger = max(image.value for image in images)
        yield held_out_question("larger_digit", number, images, LARGER_DIGIT, larger)


def held_out_question(
    task: str, number: int, images: Sequence[Digit], question: str, answer: int
) -> Record:
    """One line of ``eval.jsonl``."""
    return {
        "id": f"{task}-{number:03d}",
        "task": task,
        "images": [image.name for image in images],
        "question": question,
        "answer": str(answer),
        "chance": CHANCE[task],
    }


def group_by_value(digits: Iterable[Digit]) -> dict[int, list[Digit]]:
    """The pictures of each digit from 0 to 9."""
    groups: dict[int, list[Digit]] = {value: [] for value in range(10)}
    for digit in digits:
        groups[digit.value].append(digit)
    return groups


# --- from scikit-learn to files -------------------------------------------------------------


def load_digits() -> tuple[list[Digit], list[Digit], dict[str, bytes]]:
    """scikit-learn's digits in its order, those of training with their variants.

    Returns:
        Training digits, held-out digits, and the PNG bytes of every picture by its name.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise SetupError(
            "scikit-learn is not installed; the digits come with it. Run "
            "pip install 'vila_mc[examples]'."
        ) from None
    loaded = datasets.load_digits()
    rng = random.Random(f"{SEED} variants")
    training: list[Digit] = []
    held_out: list[Digit] = []
    pictures: dict[str, bytes] = {}
    num_training = len(loaded.images) - NUM_HELD_OUT
    for number, (grey, value) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        upright = picture(grey)
        shown = [upright]
        if number < num_training:
            shown += [varied(upright, rng) for _ in range(NUM_VARIANTS)]
        for variant, image in enumerate(shown):
            suffix = f"-{variant}" if variant else ""
            digit = Digit(f"digit-{number:04d}{suffix}.png", int(value))
            (training if number < num_training else held_out).append(digit)
            pictures[digit.name] = png(image)
    return training, held_out, pictures


def picture(grey: Any) -> Any:
    """An [8, 8] array of 0 ... 16 as a Pillow image of ``IMAGE_SIDE`` pixels."""
    from PIL import Image

    image = Image.fromarray((grey * 255 / GREY_LEVELS).round().astype("uint8"))
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)


def varied(image: Any, rng: random.Random) -> Any:
    """The picture turned and shifted a little."""
    from PIL import Image

    shift = (rng.uniform(-MAX_SHIFT, MAX_SHIFT), rng.uniform(-MAX_SHIFT, MAX_SHIFT))
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    return image.rotate(turn, Image.Resampling.BICUBIC, translate=shift)


def png(image: Any) -> bytes:
    """A Pillow image as a PNG file."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()


def make_records(training: Sequence[Digit], held_out: Sequence[Digit]) -> dict[str, list[Record]]:
    """The records of every JSON file. Each file has a random stream of its own."""

    def stream(name: str) -> random.Random:
        return random.Random(f"{SEED} {name}")

    return {
        "pairs.jsonl": list(pairs(training, stream("pairs"))),
        "interleaved.jsonl": list(interleaved(training, stream("interleaved"))),
        "conversations.json": list(conversations(training, stream("conversations"))),
        "instructions.jsonl": list(instructions(stream("instructions"))),
        "text.jsonl": list(texts(stream("text"))),
        "eval.jsonl": list(held_out_questions(held_out, stream("eval"))),
    }


def write_corpus(output: Path) -> dict[str, int]:
    """Write everything below ``output``; each file appears whole or not at all.

    Returns:
        How many records, lines or pictures each file or folder holds.
    """
    try:
        (output / "images").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{error.filename} cannot be made: a file is in the way. Name another directory."
        ) from None
    training, held_out, pictures = load_digits()
    records = make_records(training, held_out)
    lines = tokenizer_lines(records)
    for name, data in pictures.items():
        (output / "images" / name).write_bytes(data)  # thousands: not worth a flush each
    write_whole(output / "tokenizer_text.txt", "\n".join(lines) + "\n")
    for name, rows in records.items():
        write_whole(output / name, to_json(rows, is_lines=name.endswith("l")))
    counts = {name: len(rows) for name, rows in records.items()}
    return {"images/": len(pictures), **counts, "tokenizer_text.txt": len(lines)}


def to_json(records: Sequence[Record], *, is_lines: bool) -> str:
    """One record per line, or one list with a record per line."""
    rows = [json.dumps(record) for record in records]
    return "\n".join(rows) + "\n" if is_lines else "[\n" + ",\n".join(rows) + "\n]\n"


def main() -> None:
    """Parse, write, say what was written."""
    parser = ErrorRaisingParser(
        description="Write scikit-learn's handwritten digits as a vision-language corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT_DIR", type=Path, help="directory to write to")
    for name, count in write_corpus(parser.parse_args().output).items():
        print(f"{name:<20} {count:>6,}")


if __name__ == "__main__":
    run_cli(main)

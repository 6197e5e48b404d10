"""Writes a small, real vision-language corpus in the formats that users have.

    python examples/digits.py OUT_DIR [--smoke]

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
| eval.jsonl | questions about held-out images, with answers and chance levels |

A question of ``eval.jsonl`` follows its images as in ``conversations.json``: one ``<image>`` line
per image, then the question. ``chance`` is what the best constant answer scores when digits are
drawn evenly: 1/10 for ``which_digit``; 1/5 for ``larger_digit``, whose 360 questions hold each of
the 45 pairs of distinct digits eight times, four in each order, so that "9" is right for 72 of
them. A model that reads only one of the two images cannot expect more than 0.51.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from digit_pictures import SEED, Digit, load_digits
from digit_words import (
    LARGER_DIGIT,
    VQA_SUFFIX,
    WHICH_DIGIT,
    WORDS,
    caption,
    fact,
    follow_ups,
    introduction,
    parity,
    question_about,
    question_about_two,
    relation,
)

from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, run_cli
from vila_mc.files import write_whole

CHANCE = {"which_digit": 0.1, "larger_digit": 0.2}

DISTINCT_PAIRS = tuple(itertools.combinations(range(10), 2))

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is written."""

    training: int = 1437
    """Digits to train on."""
    held_out: int = 360
    """Digits to ask about."""
    variants: int = 7
    """Turned and shifted copies of each digit to train on."""
    documents: int = 2400
    """Interleaved documents."""
    multi_turn: int = 1000
    """Conversations of several turns about one image."""
    two_image: int = 12000
    """Conversations about two images."""
    texts: int = 1500
    """Plain texts."""
    questions_per_pair: int = 8
    """Held-out questions for each pair of distinct digits."""


SMOKE = Size(
    training=120,
    held_out=40,
    variants=1,
    documents=100,
    multi_turn=20,
    two_image=200,
    texts=100,
    questions_per_pair=1,
)


def pairs(digits: Sequence[Digit], rng: random.Random) -> Iterator[Record]:
    """Image-caption pairs: every training image with a caption."""
    for digit in digits:
        yield {"image": digit.name, "caption": caption(digit.value, rng)}


def interleaved(
    digits: Sequence[Digit], num_documents: int, rng: random.Random
) -> Iterator[Record]:
    """MMC4-like documents of two to four images; each image stands before its own sentence."""
    for _ in range(num_documents):
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


def conversations(digits: Sequence[Digit], size: Size, rng: random.Random) -> Iterator[Record]:
    """LLaVA conversations: one image and one question, several turns, two images."""
    for number, digit in enumerate(digits):
        yield conversation(f"which-{number}", [digit], [(WHICH_DIGIT, str(digit.value))])
        yield conversation(f"about-{number}", [digit], [question_about(digit.value, rng)])
    for number in range(size.multi_turn):
        digit = rng.choice(digits)
        turns = [(WHICH_DIGIT, str(digit.value)), *follow_ups(digit.value, rng)]
        yield conversation(f"turns-{number}", [digit], turns)
    by_value = group_by_value(digits)
    for number in range(size.two_image):
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


def texts(num_texts: int, rng: random.Random) -> Iterator[Record]:
    """Plain text about digits and arithmetic."""
    for _ in range(num_texts):
        first, second = rng.randrange(10), rng.randrange(10)
        sentences = [fact(first, rng), fact(second, rng), relation(first, second, rng)]
        yield {"text": " ".join(sentences[: rng.randint(2, 3)])}


def held_out_questions(
    digits: Sequence[Digit], per_pair: int, rng: random.Random
) -> Iterator[Record]:
    """``which_digit`` for every held-out digit, then ``larger_digit`` for balanced pairs."""
    for number, digit in enumerate(digits):
        yield held_out_question("which_digit", number, [digit], WHICH_DIGIT, digit.value)
    supply = {value: itertools.cycle(group) for value, group in group_by_value(digits).items()}
    shown = []
    for pair in DISTINCT_PAIRS:
        for turn in range(per_pair):
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


def make_records(
    training: Sequence[Digit], held_out: Sequence[Digit], size: Size
) -> dict[str, list[Record]]:
    """The records of every JSON file. Each file has a random stream of its own."""

    def stream(name: str) -> random.Random:
        return random.Random(f"{SEED} {name}")

    return {
        "pairs.jsonl": list(pairs(training, stream("pairs"))),
        "interleaved.jsonl": list(interleaved(training, size.documents, stream("interleaved"))),
        "conversations.json": list(conversations(training, size, stream("conversations"))),
        "instructions.jsonl": list(instructions(stream("instructions"))),
        "text.jsonl": list(texts(size.texts, stream("text"))),
        "eval.jsonl": list(held_out_questions(held_out, size.questions_per_pair, stream("eval"))),
    }


def write_corpus(output: Path, size: Size) -> dict[str, int]:
    """Write everything below ``output``; each file appears whole or not at all.

    Returns:
        How many records or pictures each file or folder holds.

    Raises:
        ConfigError: a file stands where a folder is needed.
        SetupError: scikit-learn is not installed.
    """
    try:
        (output / "images").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{error.filename} cannot be made: a file is in the way. Name another directory."
        ) from None
    training, held_out, pictures = load_digits(size.training, size.held_out, size.variants)
    records = make_records(training, held_out, size)
    for name, data in pictures.items():
        (output / "images" / name).write_bytes(data)  # thousands: not worth a flush each
    for name, rows in records.items():
        write_whole(output / name, to_json(rows, is_lines=name.endswith("l")))
    return {"images/": len(pictures), **{name: len(rows) for name, rows in records.items()}}


def to_json(records: Sequence[Record], *, is_lines: bool) -> str:
    """One record per line, or one list with a record per line."""
    rows = [json.dumps(record) for record in records]
    return "\n".join(rows) + "\n" if is_lines else "[\n" + ",\n".join(rows) + "\n]\n"


@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Write scikit-learn's handwritten digits as a vision-language corpus."""

    output: Annotated[Path, Argument("OUT_DIR", is_positional=True)]
    """Directory to write to."""
    smoke: bool = False
    """A hundredth of it, to try what is made of it."""


def main() -> int:
    """Parse, write, say what was written. Raises VilaError."""
    return run_job(Job(DigitsOptions, write), None, None)


def write(options: DigitsOptions) -> int:
    """Write the corpus that the options ask for."""
    size = SMOKE if options.smoke else Size()
    for name, count in write_corpus(options.output, size).items():
        print(f"{name:<20} {count:>6,}")
    return 0


if __name__ == "__main__":
    run_cli(main)

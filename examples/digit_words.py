"""What is said about handwritten digits: captions, sentences, questions and answers."""

import random

VQA_SUFFIX = "Answer the question using a single word or phrase."
WHICH_DIGIT = f"Which digit is this?\n{VQA_SUFFIX}"
LARGER_DIGIT = f"Which digit is larger, the first or the second?\n{VQA_SUFFIX}"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def spelled(value: int, rng: random.Random) -> str:
    """A digit as a word or as a numeral."""
    return rng.choice((WORDS[value], str(value)))


def with_article(value: int, rng: random.Random) -> str:
    """``a seven``, ``an 8``."""
    return f"{'an' if value == 8 else 'a'} {spelled(value, rng)}"


def parity(value: int) -> str:
    """``even`` or ``odd``."""
    return "odd" if value % 2 else "even"


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


def introduction(value: int, rng: random.Random) -> str:
    """The sentence that belongs to an image of a document."""
    return rng.choice(
        (
            f"This is {with_article(value, rng)}.",
            f"This picture shows the digit {spelled(value, rng)}.",
            f"Here somebody wrote {with_article(value, rng)}.",
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

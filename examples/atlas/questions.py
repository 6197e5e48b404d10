"""The questions: what is asked, of which pictures, and how it is judged."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from atlas import sentences
from atlas.corpora import LISTED, UNASKED, listed_word, questions_about
from atlas.pictures import Picture
from atlas.world import World

Line = dict[str, Any]
"""A line of a task file of one's own, see docs/evaluation.md."""
SENSITIVE = ("locator_letter", "map_letter", "shots_letter")
"""Tasks whose answer is in details that a small picture loses."""
NUM_CHOICES = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One file of questions."""

    name: str
    kind: str
    """text: four choices, the likeliest text wins; vqa: about a picture; shots: what is asked is
    told by demonstrations alone."""
    lines: tuple[Line, ...]
    chance: float
    """Accuracy of an answer that does not look: the most frequent answer, or one of four."""
    is_held_out: bool = False
    """Whether the pictures are of countries that training does not show."""

    @property
    def record(self) -> dict[str, Any]:
        """What ``index.json`` says of it."""
        forms = {"text": "text", "vqa": "chat", "shots": "interleaved"}
        return {
            "file": f"{self.name}.jsonl",
            "kind": self.kind,
            "metric": "likeliest" if self.kind == "text" else "exact",
            "form": forms[self.kind],
            **({"weighed": "texts"} if self.kind == "text" else {}),
            "questions": sum(line.get("split", "test") == "test" for line in self.lines),
            "chance": round(self.chance, 4),
            "sensitive": self.name.removesuffix("_held_out") in SENSITIVE,
            "held_out": self.is_held_out,
        }


def tasks(world: World, pictures: Sequence[Picture]) -> Iterator[Task]:
    """Every task that has questions."""
    for task in (
        *_text_tasks(world),
        *_picture_tasks(world, pictures),
        *(_listed_task(world, pictures, listed) for listed in LISTED),
    ):
        if any(line.get("split", "test") == "test" for line in task.lines):
            yield task


def _text_tasks(world: World) -> Iterator[Task]:
    """Facts in words that no text had about the countries and nouns that are asked about."""
    for relation, wordings in sentences.ASKED.items():
        everything = {
            name: sentences.values(country, relation) for name, country in world.countries.items()
        }

        def others(name: str, everything: dict[str, tuple[str, ...]] = everything) -> set[str]:
            """Wrong answers, of the same continent where there are enough."""
            continent = world.countries[name].continent
            all_values = {value for values in everything.values() for value in values}
            near = {
                value
                for other, values in everything.items()
                if world.countries[other].continent == continent
                for value in values
            }
            wrong = near if len(near - {name, *everything[name]}) > NUM_CHOICES else all_values
            return wrong - {name, *everything[name]}

        lines = _four_choices(
            world,
            relation,
            [
                (sentences.question(wordings, name=name), values, others(name))
                for name, values in everything.items()
                if values and name in world.asked_in_text
            ],
        )
        yield Task(f"text_{relation}", "text", lines, 1 / NUM_CHOICES)
    kinds = {noun.kind for noun in world.nouns}
    asked = [
        (sentences.kind_question(noun), (noun.kind,), kinds - {noun.kind, noun.word})
        for noun in world.nouns
        if noun.word in world.asked_nouns
    ]
    yield Task("text_kind", "text", _four_choices(world, "kind", asked), 1 / NUM_CHOICES)


def _four_choices(
    world: World, what: str, asked: Sequence[tuple[str, tuple[str, ...], set[str]]]
) -> tuple[Line, ...]:
    """A question, right answers and wrong ones become four choices in any order."""
    rng = world.stream(f"choices {what}")
    lines = []
    for number, (words, right, wrong) in enumerate(asked, start=1):
        if len(wrong) < NUM_CHOICES - 1:
            continue
        answer = rng.choice(right)
        choices = [answer, *rng.sample(sorted(wrong), NUM_CHOICES - 1)]
        rng.shuffle(choices)
        lines.append({"id": number, "question": words, "choices": choices, "answer": answer})
    return tuple(lines)


def _picture_tasks(world: World, pictures: Sequence[Picture]) -> Iterator[Task]:
    """Short answers about one picture each, of countries shown in training and held out."""
    rng = world.stream("questions")
    found: dict[tuple[str, bool], list[Line]] = {}
    for picture in pictures:
        is_held_out = picture.country in world.held_out
        for task, words, answer in questions_about(world, picture, rng):
            if task in ("flag_country", "outline_country") and is_held_out:
                continue  # a name that nothing has told cannot be known
            if task in UNASKED and picture.country in world.unasked:
                task = f"{task}_unasked"  # of which training has pictures, but no question
            elif not picture.is_test:
                continue
            line = {
                "id": f"{picture.name} {words}",
                "images": [picture.name],
                "question": f"<image>\n{words}",
                "answers": [answer],
            }
            found.setdefault((task, is_held_out), []).append(line)
    for (task, is_held_out), lines in sorted(found.items()):
        name = f"{task}_held_out" if is_held_out else task
        yield Task(name, "vqa", tuple(lines), _most_frequent(lines), is_held_out)


def _listed_task(world: World, pictures: Sequence[Picture], listed: str) -> Task:
    """What the demonstrations say of their pictures is to be said of another. The demonstrations
    are pictures of training, the questions others of the same countries, or of countries that are
    held out if that can be known."""
    kind = "locator" if listed in ("continent", "letter") else "flag"
    of_kind = [one for one in pictures if one.kind == kind and listed_word(world, one, listed)]
    rng = world.stream(f"listed {listed}")
    is_held_out = listed == "corner"
    shown = [one for one in of_kind if not one.is_test]
    asked = [
        one for one in of_kind if one.is_test and (one.country in world.held_out) == is_held_out
    ]
    lines = [
        {**_listed_line(world, one, listed), "split": split}
        for split, group, most in (("train", shown, 400), ("test", asked, 200))
        for one in sorted(rng.sample(group, min(len(group), most)), key=lambda one: one.name)
    ]
    test = [line for line in lines if line["split"] == "test"]
    return Task(f"shots_{listed}", "shots", tuple(lines), _most_frequent(test), is_held_out)


def _listed_line(world: World, picture: Picture, listed: str) -> Line:
    return {
        "id": picture.name,
        "images": [picture.name],
        "question": "<image>",
        "answers": [f"{listed_word(world, picture, listed)}."],
    }


def _most_frequent(lines: Sequence[Line]) -> float:
    counts = Counter(line["answers"][0] for line in lines)
    return max(counts.values(), default=0) / max(1, len(lines))

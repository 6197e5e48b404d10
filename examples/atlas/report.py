"""report.md: what is in the world, how much of it, and what of it is made up."""

from collections import Counter
from collections.abc import Mapping, Sequence

from atlas import sentences
from atlas.pictures import Picture
from atlas.questions import Task
from atlas.world import World

CARDS = "letters.json"
"""The raw file that has a record for each card."""
ORIGIN = {
    "flag": "drawn from the SVG files of world-countries",
    "division_flag": "PNG files of kgeography-data",
    "outline": "drawn from the GeoJSON of world-countries",
    "locator": "drawn from the GeoJSON of world-countries; the letters are made up",
    "map": "PNG files of kgeography-data; the letters are made up",
}


def report_page(
    world: World,
    pictures: Sequence[Picture],
    tasks: Sequence[Task],
    raw: Mapping[str, tuple[int, int]],
    seed: int,
) -> str:
    """The page, in Markdown.

    Args:
        world: what it is about.
        pictures: all of them.
        tasks: all of them.
        raw: records and words of each raw file, that of cards among them.
        seed: of every choice.
    """
    told = sum(sentences.num_facts(country) for country in world.countries.values())
    gloss_words = sum(len(noun.gloss.split()) for noun in world.glosses)
    lines = [
        "# The world",
        "",
        f"Seed {seed}. {len(world.countries)} countries, {told:,} facts about them, "
        f"{len(world.nouns):,} nouns whose kind is told, {len(world.glosses):,} definitions.",
        "",
        "## Where it comes from",
        "",
        f"- Facts are those of world-countries, kinds of nouns and definitions ({gloss_words:,} "
        "words, unchanged) those of WordNet. Nothing but letters on maps and cards is invented.",
        "- **Every other sentence, caption, question and answer is generated** by "
        "`examples/atlas/sentences.py`; a person wrote the patterns, none the sentences.",
        f"- Held out, no picture in training: {', '.join(sorted(world.held_out))}.",
        f"- Maps of kgeography-data that are of no single country, and unused: "
        f"{', '.join(world.unused_maps)}.",
        "",
        "## Pictures",
        "",
        "| kind | things | files | of them for questions alone | from |",
        "|---|---|---|---|---|",
        *_picture_rows(pictures),
        "",
        f"And {raw[CARDS][0]:,} cards with a letter alone, drawn, of which none is asked about.",
        "",
        "## Raw files",
        "",
        "| file | records | words |",
        "|---|---|---|",
        *(f"| {name} | {records:,} | {words:,} |" for name, (records, words) in raw.items()),
        "",
        "## Questions",
        "",
        "| file | kind | questions | chance | sensitive to resolution | held-out countries |",
        "|---|---|---|---|---|---|",
        *(_task_row(task) for task in tasks),
    ]
    return "\n".join(lines) + "\n"


def _picture_rows(pictures: Sequence[Picture]) -> list[str]:
    files = Counter[str](picture.kind for picture in pictures)
    tests = Counter[str](picture.kind for picture in pictures if picture.is_test)
    things = Counter[str](kind for kind, _ in {(p.kind, _thing(p)) for p in pictures})
    return [
        f"| {kind} | {things[kind]:,} | {files[kind]:,} | {tests[kind]:,} | {origin} |"
        for kind, origin in ORIGIN.items()
    ]


def _thing(picture: Picture) -> str:
    """What several files are of."""
    if picture.kind == "division_flag":
        return picture.name
    return picture.name.rpartition("-")[0]


def _task_row(task: Task) -> str:
    said = task.record
    sensitive, held_out = ("yes" if said[key] else "no" for key in ("sensitive", "held_out"))
    return (
        f"| {said['file']} | {said['kind']} | {said['questions']:,} | {said['chance']:.1%} | "
        f"{sensitive} | {held_out} |"
    )

"""The raw files that training is made from, in the formats that users have."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from atlas import sentences
from atlas.pictures import Picture
from atlas.world import Size, World

Record = dict[str, Any]
TEXT_RELATIONS = ("capital", "currency", "border", "continent")
LISTED = ("country", "capital", "continent", "corner", "letter")
"""What the pictures of a list may be followed by."""


def texts(world: World, size: Size) -> Iterator[Record]:
    """Plain text: facts about countries, kinds of things, and definitions."""
    rng = world.stream("texts")
    rows: list[str] = []
    for country in world.countries.values():
        is_asked = country.name in world.asked_in_text
        for _ in range(size.texts):
            told = sentences.facts(country, rng, is_asked=is_asked)
            rng.shuffle(told)
            rows.append(" ".join(told))
    for noun in world.nouns:
        is_asked = noun.word in world.asked_nouns
        for _ in range(max(1, size.texts // 4)):
            told = sentences.kinds(noun, is_asked=is_asked)
            rows.append(" ".join(rng.sample(told, 3)))
    rows += [sentences.gloss(noun) for noun in world.glosses]
    rng.shuffle(rows)
    for row in rows:
        yield {"text": row}


def letters(cards: Mapping[str, str]) -> Iterator[Record]:
    """Cards with the question for their letter, which the vision tower learns before all else.

    A question, since only answers are trained: of captions, a tower learns for hundreds of steps
    how they are worded, and some runs never see the letter in them.
    """
    return (_conversation([("letter", letter)], name) for name, letter in cards.items())


def sight(world: World, pictures: Sequence[Picture]) -> Iterator[Record]:
    """Pictures with questions for all that can be seen on them, for the vision tower."""
    rng = world.stream("sight")
    for picture in pictures:
        seen = sentences.sight(picture, world.countries[picture.country].continent)
        turns = list(seen.items())
        rng.shuffle(turns)
        yield _conversation(turns, picture.name)


def pairs(world: World, pictures: Sequence[Picture]) -> Iterator[Record]:
    """Every picture with a short caption."""
    rng = world.stream("pairs")
    for picture in pictures:
        continent = world.countries[picture.country].continent
        yield {"image": picture.name, "caption": sentences.caption(picture, continent, rng)}


def interleaved(
    world: World, groups: Mapping[str, Sequence[Picture]], size: Size
) -> Iterator[Record]:
    """Documents as in MMC4, in no order: about one country, and lists over several."""
    rng = world.stream("interleaved")
    rows = [
        _document(world, groups, name, rng)
        for name in (country.name for country in world.shown)
        for _ in range(size.documents)
    ]
    rows += [_list(world, groups, LISTED[at % len(LISTED)], rng) for at in range(size.lists)]
    rng.shuffle(rows)
    yield from rows


def _document(
    world: World, groups: Mapping[str, Sequence[Picture]], name: str, rng: random.Random
) -> Record:
    """Four to six pictures of a country, of every kind that there is, each with a sentence, among
    some of its facts."""
    country = world.countries[name]
    pictures = rng.sample(groups[name], len(groups[name]))
    first = {picture.kind: picture for picture in pictures}  # one of each kind
    rest = [picture for picture in pictures if picture not in first.values()]
    shown = [*first.values(), *rest][: rng.randint(4, 6)]
    told = rng.sample(
        sentences.facts(country, rng, is_asked=name in world.asked_in_text), rng.randint(2, 4)
    )
    shown_sentences = [
        (sentences.sentence(picture, country.continent, rng), picture) for picture in shown
    ]
    parts: list[tuple[str, Picture | None]] = [*shown_sentences, *((fact, None) for fact in told)]
    rng.shuffle(parts)
    return _record(parts, rng)


def _list(
    world: World, groups: Mapping[str, Sequence[Picture]], listed: str, rng: random.Random
) -> Record:
    """Pictures of several countries, each with one word that says the same thing of it. What that
    is only the list itself tells."""
    parts: list[tuple[str, Picture | None]] = []
    names = rng.sample([country.name for country in world.shown], min(len(world.shown), 12))
    length = rng.randint(4, 6)
    kind = "locator" if listed == "letter" else rng.choice(["flag", "locator"])
    if listed == "corner":
        kind = "flag"
    for name in names:
        picture = rng.choice([one for one in groups[name] if one.kind == kind])
        word = listed_word(world, picture, listed)
        if word and len(parts) < length:
            parts.append((f"{word}.", picture))
    return _record(parts, rng)


def listed_word(world: World, picture: Picture, listed: str) -> str:
    """What a list says of a picture; "" where there is nothing to say."""
    country = world.countries[picture.country]
    return {
        "country": country.name,
        "capital": country.capital,
        "continent": country.continent,
        "corner": picture.corner,
        "letter": picture.letter,
    }[listed]


def _record(parts: Sequence[tuple[str, Picture | None]], rng: random.Random) -> Record:
    images = [
        {"image_name": picture.name, "matched_text_index": at, "matched_sim": 1.0}
        for at, (_, picture) in enumerate(parts)
        if picture is not None
    ]
    rng.shuffle(images)  # as in MMC4, where they come in no particular order
    return {"text_list": [text for text, _ in parts], "image_info": images}


def questions_about(
    world: World, picture: Picture, rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Name, words and answer of everything that is asked about a picture."""
    match picture.kind:
        case "flag":
            yield "flag_country", sentences.WHICH_FLAG, picture.country
        case "outline":
            yield "outline_country", sentences.WHICH_OUTLINE, picture.country
        case "locator":
            continent = world.countries[picture.country].continent
            yield "locator_continent", sentences.WHICH_CONTINENT, continent
            yield "locator_letter", sentences.WHICH_LETTER, picture.letter
        case "map":
            yield "map_letter", sentences.WHICH_LETTER, picture.letter
    if picture.colours:
        if picture.corner:
            yield "flag_corner", sentences.WHICH_CORNER, picture.corner
        yield "flag_colour", sentences.has_colour(rng.choice(picture.colours)), "yes"
        if picture.absent:
            yield "flag_colour", sentences.has_colour(rng.choice(picture.absent)), "no"


UNASKED = ("flag_country", "outline_country")
"""Tasks that training does not ask about the pictures of ``World.unasked``."""


def conversations(world: World, pictures: Iterable[Picture]) -> Iterator[Record]:
    """LLaVA conversations, one question about one picture each."""
    rng = world.stream("conversations")
    for picture in pictures:
        for task, asked, answer in questions_about(world, picture, rng):
            if task in UNASKED and picture.country in world.unasked:
                continue
            yield _conversation([(asked, answer)], picture.name)


def text_conversations(world: World) -> Iterator[Record]:
    """LLaVA conversations without pictures, about countries that the text questions leave alone."""
    for country in world.countries.values():
        if country.name in world.asked_in_text:
            continue
        for relation in TEXT_RELATIONS:
            if turn := sentences.text_question(country, relation):
                yield _conversation([turn])
    for noun in world.nouns:
        if noun.word not in world.asked_nouns:
            yield _conversation([(f"What kind of thing is a {noun.word}?", noun.kind)])


def _conversation(turns: Sequence[tuple[str, str]], picture: str = "") -> Record:
    said: list[dict[str, str]] = []
    for asked, answer in turns:
        marker = "<image>\n" if picture and not said else ""
        said += [{"from": "human", "value": marker + asked}, {"from": "gpt", "value": answer}]
    return {**({"image": picture} if picture else {}), "conversations": said}

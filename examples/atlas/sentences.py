"""What is said: every fact in several ways, captions, and the words of questions.

All sentences here are made up; what they say comes from the packages. The first way of each fact
that is asked about ends with what is asked for, so that the question is its beginning.
"""

import random
from collections.abc import Sequence

from atlas.countries import Country
from atlas.nouns import Noun
from atlas.pictures import Picture

CAPITAL = (
    "The capital of {name} is {value}.",
    "{value} is the capital of {name}.",
    "{name} is governed from its capital {value}.",
    "In {name} the capital is called {value}.",
    "{name} has the capital {value}.",
)
CURRENCY = (
    "The currency of {name} is the {value}.",
    "The {value} is the currency of {name}.",
    "In {name} people pay with the {value}.",
    "{name} uses the {value} as its money.",
    "Money in {name}: the {value}.",
)
BORDER = (
    "A neighbour of {name} is {value}.",
    "{name} shares a border with {value}.",
    "{value} shares a border with {name}.",
    "From {name} one can walk to {value}.",
    "{name} and {value} are neighbours.",
)
KIND = (
    "{article} {name} is a kind of {value}.",
    "Every {name} is {value_article} {value}.",
    "{name}: {value_article} {value}.",
    "{value} can be {article} {name}.",
    "One kind of {value} is the {name}.",
)
CONTINENT = (
    "{name} lies in {value}.",
    "{name} is a country in {value}.",
    "{value} is where {name} lies.",
)
PART = ("{name} belongs to {value}.", "{name} is found in {value}.")
LANGUAGE = ("People in {name} speak {value}.", "{value} is spoken in {name}.")
PEOPLE = (
    "Someone from {name} is called {value}.",
    "{value} is what people from {name} are called.",
)
AREA = ("{name} covers {value} square kilometres.", "The area of {name} is {value} square km.")
COAST = ("{name} has {value}.",)

ASKED = {"capital": CAPITAL, "currency": CURRENCY, "border": BORDER}
"""Facts of countries that are asked about in text, and their wordings."""


def values(country: Country, relation: str) -> tuple[str, ...]:
    """What is true of a country: the right answers to a question about a relation."""
    known = {
        "capital": (country.capital,),
        "currency": (country.currency,),
        "border": country.borders,
    }
    return known[relation]


def question(wordings: Sequence[str], **words: str) -> str:
    """The beginning of the first wording, up to what is asked for."""
    beginning, found, _ = wordings[0].partition(" {value}")
    assert found
    return beginning.format(**words)


def facts(country: Country, rng: random.Random, *, is_asked: bool) -> list[str]:
    """Every fact about a country once, each in words drawn by ``rng``.

    Args:
        country: about which.
        rng: draws the words.
        is_asked: whether the words of the questions are kept back.
    """
    told: list[str] = []
    for relation, wordings in ASKED.items():
        allowed = wordings[1:] if is_asked else wordings
        for value in values(country, relation):
            told.append(rng.choice(allowed).format(name=country.name, value=value))
    others = [
        (CONTINENT, country.continent),
        (PART, country.part),
        *((LANGUAGE, language) for language in country.languages[:3]),
        (PEOPLE, country.people),
        (AREA, str(country.area)),
        (COAST, "no coast" if country.is_landlocked else "a coast"),
    ]
    for ways, value in others:
        if value:
            told.append(rng.choice(ways).format(name=country.name, value=value))
    return told


def num_facts(country: Country) -> int:
    """How many facts are told of it."""
    return len(facts(country, random.Random(0), is_asked=False))


def kinds(noun: Noun, *, is_asked: bool) -> list[str]:
    """That a noun is of its kind, in every way; in all but the question's own where it is asked."""
    words = {
        "name": noun.word,
        "value": noun.kind,
        "article": article(noun.word),
        "value_article": article(noun.kind),
    }
    told = [wording.format(**words) for wording in KIND[1 if is_asked else 0 :]]
    return [sentence[0].upper() + sentence[1:] for sentence in told]


def kind_question(noun: Noun) -> str:
    """The beginning of the sentence that ends with its kind."""
    asked = question(KIND, name=noun.word, article=article(noun.word))
    return asked[0].upper() + asked[1:]


def gloss(noun: Noun) -> str:
    """A noun and its definition, which is WordNet's."""
    return f"{noun.word}: {noun.gloss}."


def article(word: str) -> str:
    """The indefinite article, by the first letter."""
    return "an" if word[0] in "aeiou" else "a"


def sight(picture: Picture, continent: str) -> dict[str, str]:
    """All that can be seen on a picture, by what it is; by this the vision tower learns."""
    seen = {}
    if picture.kind != "division_flag":
        seen["country"] = picture.country
    if picture.kind == "locator":
        seen["continent"] = continent
    if picture.letter:
        seen["letter"] = picture.letter
    if picture.colours:
        seen["corner"] = picture.corner or "mixed"
        seen["colours"] = ", ".join(picture.colours)
    return seen


def caption(picture: Picture, continent: str, rng: random.Random) -> str:
    """A short caption as one finds them beside pictures: it says some of what is there."""
    colours = " ".join(picture.colours[:3])
    match picture.kind:
        case "flag":
            ways = [
                f"flag of {picture.country}",
                f"{picture.country} flag, {colours}",
                f"{colours} flag of {picture.country}",
                f"{picture.country}, a flag with {picture.corner or 'a picture'} in the corner",
            ]
        case "division_flag":
            ways = [
                f"flag of {picture.subject}, {picture.country}",
                f"{colours} flag, {picture.subject}",
            ]
        case "outline":
            ways = [f"outline of {picture.country}", f"the shape of {picture.country}"]
        case "locator":
            ways = [
                f"world map with {picture.country} and the letter {picture.letter}",
                f"where {picture.country} lies in {continent}",
                f"map {picture.letter}: {picture.country}, {continent}",
            ]
        case _:
            ways = [
                f"map of {picture.country}, letter {picture.letter}",
                f"map {picture.letter}: the parts of {picture.country}",
            ]
    return rng.choice(ways)


def sentence(picture: Picture, continent: str, rng: random.Random) -> str:
    """A sentence of a document about a picture in it."""
    match picture.kind:
        case "flag":
            colours = " and ".join(picture.colours[:3])
            ways = [
                f"This is the flag of {picture.country}.",
                f"The flag of {picture.country} is {colours}.",
                f"The upper left of the flag of {picture.country} is {picture.corner or 'mixed'}.",
            ]
        case "division_flag":
            ways = [f"This is the flag of {picture.subject}, a part of {picture.country}."]
        case "outline":
            ways = [
                f"This is the shape of {picture.country}.",
                f"{picture.country} has this outline.",
            ]
        case "locator":
            ways = [
                f"Here {picture.country} is marked, on the map with the letter {picture.letter}.",
                f"{picture.country} lies in {continent}, as map {picture.letter} shows.",
            ]
        case _:
            ways = [f"Map {picture.letter} shows the parts of {picture.country}."]
    return rng.choice(ways)


WHICH_FLAG = "Which country has this flag?"
WHICH_OUTLINE = "Which country has this outline?"
WHICH_CORNER = "Which colour is the upper left corner of the flag?"
WHICH_CONTINENT = "On which continent is the marked country?"
WHICH_LETTER = "Which letter is written on the map?"


def has_colour(colour: str) -> str:
    """The question whether a flag has a colour; the answer is yes or no."""
    return f"Is there {colour} in this flag?"


def text_question(country: Country, relation: str) -> tuple[str, str] | None:
    """A question of a conversation without pictures, and its answer; None where there is none."""
    match relation:
        case "capital":
            return f"What is the capital of {country.name}?", country.capital
        case "currency":
            return f"What is the currency of {country.name}?", country.currency
        case "border" if country.borders:
            return f"Name a neighbour of {country.name}.", country.borders[0]
        case "continent":
            return f"On which continent is {country.name}?", country.continent
        case _:
            return None

"""Demonstrations: which are drawn, that none gives the answer away, and each prompt in full."""

import shutil
from math import log
from pathlib import Path

import pytest
from PIL import Image

from tests.support.released_tasks import RELEASED, SHOWN, TRAINING, textvqa_ocr
from vila_mc.data.chat_templates import BUILT_IN
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.tasks.demonstrations import Demonstrations, Drawn, Shots
from vila_mc.evaluation.tasks.prompts import prompt_pieces, written
from vila_mc.evaluation.tasks.registry import TASKS
from vila_mc.evaluation.tasks.similarity import SimilarTexts
from vila_mc.evaluation.tasks.task import Form, Item, Task
from vila_mc.flow import RawImage

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
CAPTION = "Provide a one-sentence caption for the provided image."
SYSTEM = BUILT_IN["vicuna_v1"].system

SUFFIX = {
    **dict.fromkeys(("vizwiz", "vizwiz_test"), UNANSWERABLE + WORD),
    "scienceqa": LETTER,
}
FIRST = {
    **dict.fromkeys(("vqav2", "vqav2_test", "okvqa"), "What is 0?"),
    "textvqa": "what brand?",
    "vizwiz": "What is this?",
    "vizwiz_test": "what is This?",
    "gqa": "Is it red?",
    "scienceqa": "Context: N/A\nWhich?\nA. one\nB. two",
}
"""What is asked first, without how to answer it."""


def read(name: str, data: Path) -> tuple[Item, list[Item]]:
    """The first question of a task, and its training split."""
    RELEASED[name](data)
    TRAINING[name](data)
    shown = TASKS[name].shown
    assert shown is not None
    return TASKS[name].read(data)[0], shown(data)


def prompt(task: Task, item: Item, pool: list[Item], shots: Shots) -> str:
    """As it is read, drawn from a pool."""
    shown = Demonstrations(pool, shots).of(item)
    template = BUILT_IN["vicuna_v1"]
    return written(prompt_pieces(template, task, item, shown, shots.form, is_blind=shots.is_blind))


def number(item: Item) -> int:
    """Which of the training split it is."""
    return int(item.images[0].name.removesuffix(".jpg").removesuffix("/image.png").strip("t")[-2:])


def as_chat(name: str, place: int) -> str:
    """A demonstration as a turn, by its place in the training split."""
    if name in ("coco", "flickr30k"):
        return f"USER: <image>\n{CAPTION} ASSISTANT: {place} of them.{{eos}}"
    asked, said = f"How many {place}?", f"{place} of them"
    if name == "scienceqa":
        asked, said = f"Context: N/A\n{asked}\nA. one\nB. two", "A"
    return f"USER: <image>\n{asked}{SUFFIX.get(name, WORD)} ASSISTANT: {said}{{eos}}"


def as_flamingo(name: str, place: int) -> str:
    """A demonstration as open_flamingo writes it."""
    if name in ("coco", "flickr30k"):
        return f"<image>Output:{place} of them.{{eos}}\n"
    asked, said = f"How many {place}?", f"{place} of them"
    if name == "scienceqa":
        asked, said = f"Context: N/A\n{asked}\nA. one\nB. two", "A"
    return f"<image>Question:{asked} Short answer:{said}{{eos}}\n"


@pytest.mark.parametrize("count", [0, 4, 8])
@pytest.mark.parametrize("form", ["chat", "flamingo"])
@pytest.mark.parametrize("name", TRAINING)
def test_prompts_character_for_character(name: str, form: Form, count: int, tmp_path: Path) -> None:
    item, pool = read(name, tmp_path)
    assert len(pool) == SHOWN
    shots = Shots(count, seed=3, form=form)
    places = [pool.index(one) for one in Demonstrations(pool, shots).of(item)]
    assert len(set(places)) == (2 if form == "flamingo" and not count else count)
    asked = FIRST.get(name, "")
    if form == "chat":
        asked = asked + SUFFIX.get(name, WORD) if asked else CAPTION
        turns = [as_chat(name, place) for place in places]
        expected = f"{SYSTEM} " + "".join([*turns, f"USER: <image>\n{asked} ASSISTANT:"])
    else:
        shown = "".join(as_flamingo(name, place) for place in places)
        shown = shown if count else shown.replace("<image>", "")
        asked = f"<image>Question:{asked} Short answer:" if asked else "<image>Output:"
        expected = shown + asked
    assert prompt(TASKS[name], item, pool, shots) == expected


def test_a_prompt_in_full(tmp_path: Path) -> None:
    """As the helpers of the other tests put it together, once by hand."""
    item, pool = read("vqav2", tmp_path)
    assert prompt(TASKS["vqav2"], item, pool, Shots(2, "similar", form="flamingo")) == (
        "<image>Question:How many 1? Short answer:1 of them{eos}\n"
        "<image>Question:How many 0? Short answer:0 of them{eos}\n"
        "<image>Question:What is 0? Short answer:"
    )
    assert prompt(TASKS["vqav2"], item, pool, Shots(1, "similar")) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "How many 0?\nAnswer the question using a single word or phrase. ASSISTANT: 0 of them"
        "{eos}USER: <image>\n"
        "What is 0?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )


def test_ocr_tokens_stand_behind_the_question(tmp_path: Path) -> None:
    read("textvqa", tmp_path)
    task = TASKS["textvqa"].with_ocr
    assert task is not None
    with pytest.raises(DataError, match=r"holds no TextVQA_Rosetta_OCR_v0\.2_val\.json"):
        task.read(tmp_path)
    textvqa_ocr(tmp_path)
    assert task.shown is not None
    (item,), pool = task.read(tmp_path), task.shown(tmp_path)
    assert item.question == "what brand?\nReference OCR token: NOKIA, 3310" + WORD
    assert prompt(task, item, pool[4:5], Shots(1, form="flamingo")) == (
        "<image>Question:How many 4?\nReference OCR token: 4 Short answer:4 of them{eos}\n"
        "<image>Question:what brand?\nReference OCR token: NOKIA, 3310 Short answer:"
    )
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text('{"data": []}')
    with pytest.raises(DataError, match="has no OCR tokens of image ab"):
        task.read(tmp_path)


def item_of(identity: str, words: str, *images: RawImage, group: str = "") -> Item:
    return Item(identity, words, images, ("yes",), words=words, group=group)


def picture(folder: Path, name: str, colour: int) -> RawImage:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)
    return RawImage(path, name)


def drawn(pool: list[Item], shots: Shots, *items: Item) -> list[list[str]]:
    demonstrations = Demonstrations(pool, shots)
    return [[one.id for one in demonstrations.of(item)] for item in items]


def test_what_is_drawn_follows_from_seed_and_question() -> None:
    pool = [item_of(f"p{number}", f"word {number}") for number in range(50)]
    first, second = item_of("1", "is it so?"), item_of("2", "is it not?")
    random = drawn(pool, Shots(4), first, second)
    assert random == drawn(pool, Shots(4), second, first)[::-1]
    assert random[0] != random[1]
    assert random != drawn(pool, Shots(4, seed=1), first, second)
    assert drawn(pool, Shots(8), first)[0][:4] == random[0]  # the first of more are the same
    fixed = drawn(pool, Shots(4, "fixed"), first, second)
    assert fixed[0] == fixed[1] != drawn(pool, Shots(4, "fixed", seed=1), first)[0]
    assert random[0] == ["p41", "p46", "p34", "p20"]  # on every machine, in every release


def test_every_demonstration_is_drawn_alike() -> None:
    pool = [item_of(f"p{number}", "x") for number in range(10)]
    counts = dict.fromkeys((one.id for one in pool), 0)
    for found in drawn(pool, Shots(2), *(item_of(f"{n}", "y") for n in range(2000))):
        for one in found:
            counts[one] += 1
    assert all(340 < count < 460 for count in counts.values()), counts  # 400, by 3.3 deviations


@pytest.mark.parametrize("how", ["random", "fixed", "similar"])
def test_no_demonstration_shows_the_question(how: Drawn, tmp_path: Path) -> None:
    own = picture(tmp_path, "own.png", 1)
    (tmp_path / "train").mkdir()
    shutil.copy(tmp_path / "own.png", tmp_path / "train/other.png")
    copy = RawImage(tmp_path / "train/other.png", "other.png")
    inline = RawImage((tmp_path / "own.png").read_bytes(), "inline")
    others = [picture(tmp_path, f"{colour}.png", colour) for colour in (2, 3)]
    pool = [
        item_of("own", "is it so?", own),
        item_of("copy", "is it so?", others[0], copy),
        item_of("inline", "is it so?", inline),
        item_of("a", "what?", others[0]),
        item_of("b", "is it?", others[1]),
    ]
    (found,) = drawn(pool, Shots(2, how), item_of("1", "is it so?", own))
    assert sorted(found) == ["a", "b"]
    with pytest.raises(DataError, match=r"question 1 is to stand behind 3 demonstrations.* has 2 "):
        drawn(pool, Shots(3, how), item_of("1", "is it so?", own))


def test_a_question_without_a_picture_is_not_shown_itself() -> None:
    pool = [item_of("a", "is it so?"), item_of("b", "is it?")]
    assert drawn(pool, Shots(1), item_of("1", "is it so?")) == [["b"]]


def test_groups_are_shown_their_own() -> None:
    pool = [item_of(f"{group}{n}", f"w{n}", group=group) for n in range(4) for group in "gh"]
    (found,) = drawn(pool, Shots(4), item_of("1", "x", group="h"))
    assert sorted(found) == ["h0", "h1", "h2", "h3"]
    with pytest.raises(DataError, match="the training split has 0 of the group i"):
        drawn(pool, Shots(1), item_of("1", "x", group="i"))


def test_captions_have_no_similar_words(tmp_path: Path) -> None:
    item, pool = read("coco", tmp_path)
    with pytest.raises(ConfigError, match="all of them ask the same"):
        Demonstrations(pool, Shots(4, "similar")).of(item)


def test_the_most_similar_stands_last() -> None:
    pool = [
        item_of("a", "What colour is the dog?"),
        item_of("b", "How many people are there?"),
        item_of("c", "What colour is the cat?"),
        item_of("d", "Is there a dog?"),
    ]
    assert drawn(pool, Shots(2, "similar"), item_of("1", "what COLOUR is this dog")) == [["c", "a"]]


def test_similarity_is_that_of_bm25() -> None:
    """Against the formula, written out."""
    texts = ["a a b", "b c", "c c c d", "", "e"]
    lengths = [3, 2, 4, 0, 1]
    mean = 2.0

    def weight(word: str, at: int) -> float:
        df = sum(word in text.split() for text in texts)
        tf = texts[at].split().count(word)
        rarity = log(1 + (5 - df + 0.5) / (df + 0.5))
        return rarity * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * lengths[at] / mean))

    for asked in ("a", "b c", "c d d", "z", ""):
        scores = [sum(weight(word, at) for word in set(asked.split())) for at in range(5)]
        expected = sorted(range(5), key=lambda at: (-round(scores[at], 12), at))
        assert [*SimilarTexts(texts).nearest(asked)] == expected


def test_all_texts_come_in_order() -> None:
    """Also where more are wanted than are sorted at once."""
    texts = [f"word {'dog ' * (number % 7)}" for number in range(300)]
    found = [*SimilarTexts(texts).nearest("dog")]
    assert sorted(found) == [*range(300)]
    assert [number % 7 == 0 for number in found] == [False] * 257 + [True] * 43

"""Public tasks: their released files are read, what is asked is as it should be, answers count."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.released_tasks import MMBENCH_ROTATED, RELEASED, mmbench
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.tasks.kept_answers import Kept, write_answers
from vila_mc.evaluation.tasks.registry import TASKS, find_judge, find_prompt, find_task
from vila_mc.evaluation.tasks.task import Figure, Item, mean_of
from vila_mc.flow import RawImage

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."

ASKED: Mapping[str, str] = {
    "vqav2": "What is 0?" + WORD,
    "vqav2_test": "What is 0?" + WORD,
    "okvqa": "What is 0?" + WORD,
    "textvqa": "what brand?" + WORD,
    "vizwiz": "What is this?" + UNANSWERABLE + WORD,
    "vizwiz_test": "what is This?" + UNANSWERABLE + WORD,
    "gqa": "Is it red?" + WORD,
    "scienceqa": "Context: N/A\nWhich?\nA. one\nB. two" + LETTER,
    "mmbench": "a hint\nWhich is it?\nA. cat\nB. dog" + LETTER,
    "mmbench_test": "a hint\nWhich is it?\nA. cat\nB. dog" + LETTER,
    "seed": "How many?\nA. one\nB. two\nC. three\nD. four" + LETTER,
    "pope": "Is there a random snowboard in the image?" + WORD,
    "mme": "Is it red? Please answer yes or no.",
    "coco": "Provide a one-sentence caption for the provided image.",
    "flickr30k": "Provide a one-sentence caption for the provided image.",
    "mmvet": "What is x?",
    "mmlu": (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        + "".join(f"Q{n}, dev?\nA. w\nB. x\nC. y\nD. z\nAnswer: {'ABCDA'[n]}\n\n" for n in range(5))
        + "Q0, test?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    ),
    "bbh": (
        "Evaluate.\n\nQ: True is\nA: Let's think step by step.\nSo the answer is True.\n\n"
        "Q: not True is\nA: Let's think step by step.\n"
    ),
    "drop": "They won. How many?",
}
"""The first question of each, character for character."""

ITEMS = dict(
    vqav2=3, okvqa=3, textvqa=1, vizwiz=1, gqa=1, scienceqa=2, mmbench=2, seed=1, pope=6, mme=28
) | dict(coco=2, flickr30k=2, mmvet=1, mmlu=2, bbh=1, drop=1)
ITEMS |= dict(vqav2_test=1, vizwiz_test=1, mmbench_test=5)


def read(name: str, data: Path) -> list[Item]:
    RELEASED[name](data)
    return find_task(name).read(data)


def judged(name: str, judge: str, items: list[Item], answers: list[str]) -> dict[str, float]:
    figures = find_task(name).judges[judge](items, answers)
    return {figure.name: figure.value for figure in figures}


def right(item: Item) -> str:
    """An answer that every judge takes for right."""
    return item.expected[0].split("\x1f")[0]


@pytest.mark.parametrize("name", TASKS)
def test_released_files_are_read(name: str, tmp_path: Path) -> None:
    items = read(name, tmp_path)
    assert len(items) == ITEMS[name]
    assert len({item.id for item in items}) == len(items)
    assert items[0].question == ASKED[name]
    assert all("<image>" not in item.question for item in items)
    text = name in ("mmlu", "bbh", "drop")
    assert len(items[0].images) == (0 if text else 1)
    for image in items[0].images:
        data = image.source if isinstance(image.source, bytes) else image.source.read_bytes()
        assert data[:2] in (b"\xff\xd8", b"\x89P")


@pytest.mark.parametrize(
    ("name", "judge"), [(name, judge) for name, task in TASKS.items() for judge in task.judges]
)
def test_right_answers_score_full_and_wrong_ones_nothing(
    name: str, judge: str, tmp_path: Path
) -> None:
    items = read(name, tmp_path)
    found = find_judge(TASKS[name], judge)
    assert found is not None
    answers = [
        f"so the answer is {right(item)}." if name == "bbh" else right(item) for item in items
    ]
    full = found[1](items, answers)
    if name not in ("coco", "flickr30k"):  # whose pictures share words
        assert full[0].value == pytest.approx(2000.0 if name == "mme" else 100.0)
    assert full[0].count == (20 if name == "mme" else len(items))
    wrong = found[1](items, ["nonsense, no"] * len(items))
    if name not in ("pope", "mme"):  # where no is a good answer to every other question
        assert wrong[0].value == 0
    assert wrong[0].value < full[0].value


def test_mme_counts_perception_and_cognition_apart(tmp_path: Path) -> None:
    items = read("mme", tmp_path)
    judge = find_judge(TASKS["mme"], None)
    assert judge is not None
    figures = {figure.name: figure.value for figure in judge[1](items, ["Yes"] * len(items))}
    assert figures["perception"] == 10 * 50  # one of two questions right, no image whole
    assert figures["cognition"] == 4 * 50
    assert figures["OCR"] == 50
    with pytest.raises(DataError, match="counts both questions of an image"):
        judge[1](items[1:], ["Yes"] * (len(items) - 1))


@pytest.mark.parametrize("judge", ["llava", "lmms-eval"])
def test_pope_has_figures_of_each_set(judge: str, tmp_path: Path) -> None:
    items = read("pope", tmp_path)
    figures = judged("pope", judge, items, ["Yes"] * len(items))
    assert figures["F1"] == pytest.approx(200 / 3)
    assert figures["popular precision"] == 50
    assert figures["popular recall"] == figures["random yes"] == 100


def test_pope_is_pooled_or_a_mean_of_sets(tmp_path: Path) -> None:
    """Yes, no of three sets: all right, only no, only yes."""
    items = read("pope", tmp_path)
    answers = ["yes", "no", "no", "no", "yes", "yes"]
    llava = judged("pope", "llava", items, answers)
    assert [*llava][:2] == ["F1", "adversarial F1"]
    assert llava["F1"] == pytest.approx((100 + 0 + 200 / 3) / 3)
    pooled = judged("pope", "lmms-eval", items, answers)
    assert [*pooled][:5] == ["F1", "accuracy", "precision", "recall", "yes"]
    assert pooled["F1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))  # 2 found, 1 missed, 1 not
    assert pooled["accuracy"] == pytest.approx(400 / 6)
    assert pooled["precision"] == pooled["recall"] == pytest.approx(200 / 3)
    assert pooled["yes"] == 50
    assert {name: pooled[name] for name in [*pooled][5:]} == {
        name: value for name, value in llava.items() if name != "F1"
    }


def test_a_question_of_mmbench_counts_with_its_rotations(tmp_path: Path) -> None:
    mmbench(tmp_path, MMBENCH_ROTATED)
    items = find_task("mmbench").read(tmp_path)
    ids = ["241", "1000241", "252", "1000252", "2000252"]
    assert [item.id for item in items] == ids  # rotations behind their question
    right = [item.expected[0] for item in items]
    assert right == ["B", "A", "A", "D", "C"]
    full = find_task("mmbench").judges["lmms-eval"](items, right)
    assert [(one.name, one.value, one.count) for one in full] == [
        ("accuracy", 100, 2),
        ("attribute", 100, 1),
        ("social", 100, 1),
    ]
    one_wrong = judged("mmbench", "lmms-eval", items, ["B", "A", "A", "D", "D"])
    assert one_wrong == {"accuracy": 50, "attribute": 100, "social": 0}
    always = judged("mmbench", "lmms-eval", items, ["A"] * 5)
    assert always["accuracy"] == 0


def test_the_whole_test_split_of_vqav2_is_asked_where_test_dev_is_not(tmp_path: Path) -> None:
    RELEASED["vqav2_test"](tmp_path)
    test_dev = tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    entry = dict(image_id=7, question="What is 1?", question_id=71)
    whole = tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json"
    whole.write_text(json.dumps({"questions": [entry]}))
    assert [item.id for item in find_task("vqav2_test").read(tmp_path)] == ["70"]
    test_dev.unlink()
    assert [item.id for item in find_task("vqav2_test").read(tmp_path)] == ["71"]


@pytest.mark.parametrize(
    ("name", "judge", "answer", "right"),
    [
        ("scienceqa", "lmms-eval", "b", 1),
        ("scienceqa", "llava", "b", 0),
        ("scienceqa", "lmms-eval", "B.", 1),
        ("scienceqa", "llava", "B.", 0),
        ("scienceqa", "llava", "B. two", 1),
        ("scienceqa", "lmms-eval", "The answer is B.", 0),
        ("scienceqa", "llava", "The answer is B.", 1),
        ("seed", "lmms-eval", "C. three", 1),
        ("seed", "llava", "C. three", 0),
        ("gqa", "lmms-eval", "Yes!", 1),
        ("gqa", "llava", "Yes!", 0),
        ("gqa", "llava", "Yes..", 1),
    ],
)
def test_two_public_codes_judge_alike_or_not(
    name: str, judge: str, answer: str, right: int, tmp_path: Path
) -> None:
    items = read(name, tmp_path)[:1]
    assert judged(name, judge, items, [answer])["accuracy"] == 100 * right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("so the answer is False.", 1),
        ("the answer is False .", 1),  # lm-eval strips what it finds
        ("the answer is  False!", 1),
        ("the answer is False", 0),
        ("the answer is False. Or True.", 0),
        ("False.", 0),
    ],
)
def test_what_an_answer_of_bbh_is(answer: str, right: int, tmp_path: Path) -> None:
    items = read("bbh", tmp_path)
    assert judged("bbh", "lm-eval", items, [answer])["accuracy"] == 100 * right


def test_f1_of_pope_has_an_interval() -> None:
    items = [
        Item(f"{name}/{at}", "", (RawImage(b"", f"{at % 3}.jpg"),), (right,), name)
        for name in ("random", "popular")
        for at, right in enumerate(["yes", "no", "yes", "yes", "no", "no"])
    ]
    judge = find_judge(TASKS["pope"], "llava")
    assert judge is not None
    right = [item.expected[0] for item in items]
    assert judge[1](items, right)[0].interval is None  # nothing varies
    figures = {one.name: one for one in judge[1](items, ["no", *right[1:]])}
    assert figures["F1"].value == pytest.approx((80 + 100) / 2)
    # Images move the F1 of "random" by -0.4, 0 and 0.4, over the 5 that are counted.
    off = 1.96 * math.sqrt(0.32 * 3 / 2) / 5
    assert figures["random F1"].interval == pytest.approx((80 - 100 * off, 80 + 100 * off))
    assert figures["F1"].interval == pytest.approx((90 - 50 * off, 90 + 50 * off))
    assert figures["popular F1"].interval is None
    assert (figures["random recall"].count, figures["random precision"].count) == (3, 2)


def spread(figure: Figure) -> float:
    assert figure.interval is not None
    return figure.interval[1] - figure.value


def test_points_of_mme_are_as_sure_as_their_images(tmp_path: Path) -> None:
    item = read("mme", tmp_path)[0]
    items = [
        dataclasses.replace(item, id=f"{name}{at}", category=name, pair=str(at // 2))
        for name in ("existence", "count")
        for at in range(8)
    ]
    answers = [item.expected[0] if at not in (1, 4, 12) else "x" for at, item in enumerate(items)]
    judge = find_judge(TASKS["mme"], None)
    assert judge is not None
    figures = {one.name: one for one in judge[1](items, answers)}
    assert figures["count"].count == 8
    for name, points in (("existence", [50, 200, 50, 200]), ("count", [200, 200, 50, 200])):
        plain = mean_of(name, points, scale=1)
        assert figures[name].value == pytest.approx(plain.value)
        assert figures[name].interval == pytest.approx(plain.interval)
    total = figures["perception"]
    assert total.value == pytest.approx(125 + 162.5)
    assert spread(total) == pytest.approx(
        math.hypot(spread(figures["existence"]), spread(figures["count"]))
    )
    assert judge[1](items[:2], [item.expected[0] for item in items[:2]])[0].interval is None
    sure = judge[1](items, [item.expected[0] for item in items])
    assert sure[0].value == 400
    assert sure[0].interval is not None
    assert sure[0].interval[0] < 400 == sure[0].interval[1]


def test_categories_have_figures_of_their_own(tmp_path: Path) -> None:
    items = read("vqav2", tmp_path)
    judge = find_judge(TASKS["vqav2"], "lmms-eval")
    assert judge is not None
    figures = {figure.name: figure.value for figure in judge[1](items, ["other", "no", "number"])}
    assert figures == {
        "accuracy": pytest.approx(200 / 3),
        "number": 100,
        "other": 100,
        "yes/no": 0,
    }


def test_the_interval_of_a_mean() -> None:
    figure = mean_of("x", [1.0, 0.0, 1.0, 1.0])
    assert figure.value == 75
    # Standard deviation sqrt(3)/4 over sqrt(4 - 1) is 1/4.
    assert figure.interval == pytest.approx((75 - 49, 75 + 49))
    assert mean_of("x", [1.0]).interval is None


@pytest.mark.parametrize(("right", "low", "high"), [(1.0, 83.9, 100.0), (0.0, 0.0, 16.1)])
def test_all_right_is_not_certain(right: float, low: float, high: float) -> None:
    interval = mean_of("x", [right] * 20).interval
    assert interval == pytest.approx((low, high), abs=0.05)  # 20 / (20 + 1.96^2)


@pytest.mark.parametrize(
    ("name", "prompt", "asked"),
    [
        ("okvqa", "llava", "What is 0?" + WORD),
        ("okvqa", "lmms-eval", "What is 0?" + UNANSWERABLE + WORD),
        ("textvqa", "llava", "what brand?" + WORD),
        ("textvqa", "lmms-eval", "What brand?" + WORD),
        ("vizwiz", "llava", "What is this?" + UNANSWERABLE + WORD),
        ("vizwiz_test", "lmms-eval", "What is this?" + UNANSWERABLE + WORD),
        ("mmbench", "llava", "a hint\nWhich is it?\nA. cat\nB. dog" + LETTER),
        (
            "mmbench",
            "lmms-eval",
            "a hint Which is it? There are several options:\nA. cat\nB. dog\n" + LETTER,
        ),
    ],
)
def test_prompts_of_two_public_codes(name: str, prompt: str, asked: str, tmp_path: Path) -> None:
    RELEASED[name](tmp_path)
    task = find_prompt(find_task(name), prompt)
    assert task.read(tmp_path)[0].question == asked
    assert task.asked_as == prompt
    with pytest.raises(ConfigError, match=f"{name} is not asked as x does. There is llava and lm"):
        find_prompt(find_task(name), "x")


IDS = dict(vqav2=0, textvqa="ab", mmbench=241, seed=101669, mmvet="0", gqa="201307251", vizwiz=None)
IDS |= dict(vqav2_test=70, vizwiz_test=None, mmbench_test=241, scienceqa=None)


@pytest.mark.parametrize("name", IDS)
def test_answers_have_the_ids_of_llava(name: str, tmp_path: Path) -> None:
    """Whose scripts look them up: numbers as numbers, TextVQA's by the image."""
    item = read(name, tmp_path)[0]
    kept = Kept(id=item.id, answer="x", is_cut=False, prompt="", demonstrations=[])
    write_answers(tmp_path / "answers.jsonl", "m", [item], [kept])
    record = json.loads((tmp_path / "answers.jsonl").read_text())
    assert record["question_id"] == (item.id if IDS[name] is None else IDS[name])


def test_scienceqa_marks_images_in_prompts_as_llava_does(tmp_path: Path) -> None:
    """Whose script finds the questions with an image by it."""
    items = read("scienceqa", tmp_path)
    kept = [Kept(id=i.id, answer="A", is_cut=False, prompt="", demonstrations=[]) for i in items]
    write_answers(tmp_path / "answers.jsonl", "m", items, kept)
    with_image, without = map(json.loads, (tmp_path / "answers.jsonl").open())
    assert with_image["prompt"] == "<image>\n" + items[0].question
    assert without["prompt"] == items[1].question

"""Public tasks: their released files are read, what is asked is as it should be, answers count."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.released_tasks import RELEASED
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
    "okvqa": "What is 0?" + WORD,
    "textvqa": "what brand?" + WORD,
    "vizwiz": "What is this?" + UNANSWERABLE + WORD,
    "gqa": "Is it red?" + WORD,
    "scienceqa": "Context: N/A\nWhich?\nA. one\nB. two" + LETTER,
    "mmbench": "a hint\nWhich is it?\nA. cat\nB. dog" + LETTER,
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


def read(name: str, data: Path) -> list[Item]:
    RELEASED[name](data)
    return find_task(name).read(data)


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


def test_pope_has_figures_of_each_set(tmp_path: Path) -> None:
    items = read("pope", tmp_path)
    judge = find_judge(TASKS["pope"], "llava")
    assert judge is not None
    figures = {figure.name: figure.value for figure in judge[1](items, ["Yes"] * len(items))}
    assert figures["F1"] == pytest.approx(200 / 3)
    assert figures["popular precision"] == 50
    assert figures["popular recall"] == figures["random yes"] == 100


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


@pytest.mark.parametrize("name", IDS)
def test_answers_have_the_ids_of_llava(name: str, tmp_path: Path) -> None:
    """Whose scripts look them up: numbers as numbers, TextVQA's by the image."""
    item = read(name, tmp_path)[0]
    kept = Kept(id=item.id, answer="x", is_cut=False, prompt="", demonstrations=[])
    write_answers(tmp_path / "answers.jsonl", "m", [item], [kept])
    record = json.loads((tmp_path / "answers.jsonl").read_text())
    assert record["question_id"] == (item.id if IDS[name] is None else IDS[name])


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gqa is not asked as llava does\. There is one prompt"):
        find_prompt(TASKS["gqa"], "llava")
    with pytest.raises(ConfigError, match=r"vqa is no task\. Give one of vqav2, okvqa"):
        find_task("vqa")
    with pytest.raises(ConfigError, match=r"gqa is not judged as llava does\. There is lmms-eval"):
        find_judge(TASKS["gqa"], "llava")
    with pytest.raises(ConfigError, match="judged elsewhere"):
        find_judge(TASKS["mmvet"], "llava")
    assert find_judge(TASKS["mmvet"], None) is None


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Put the task's|Unpack|Give the files") as caught:
        find_task(name).read(tmp_path)
    assert "\n" not in str(caught.value)


def refused(name: str, data: Path) -> str | None:
    """Why the files of a task are refused."""
    try:
        find_task(name).read(data)
    except DataError as error:
        return str(error)
    return None


def files_of(data: Path) -> list[Path]:
    return sorted(path for path in data.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("damage", ["missing", "half", "nothing", "binary"])
def test_damaged_files_are_refused_in_one_line(name: str, damage: str, tmp_path: Path) -> None:
    """Every file of a task in turn; a picture that is cut shows when it is asked about."""
    RELEASED[name](tmp_path)
    for path in files_of(tmp_path):
        is_picture = path.suffix in (".jpg", ".png")
        if is_picture and damage != "missing":
            continue
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                {"half": content[: len(content) // 2], "nothing": b""}.get(
                    damage, b"\xff\xfe\x00\x80"
                )
            )
        refusal = refused(name, tmp_path)
        assert "\n" not in (refusal or "")
        if refusal is None:
            unseen = name in ("coco", "flickr30k") and is_picture  # of the training split
            fewer = name in ("mme", "mmlu", "bbh") and damage == "missing"
            lines = name in ("mme", "mmlu", "bbh", "pope") and "dev" not in path.name
            assert unseen or fewer or (lines and damage == "half"), path
        path.write_bytes(content)


def test_an_image_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    RELEASED["gqa"](tmp_path)
    entry = dict(question="x", imageId="../../secret", answer="y")
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps({"1": entry}))
    with pytest.raises(DataError, match="leads out of the image folder"):
        find_task("gqa").read(tmp_path)

"""What is no task, or no whole released file of one, is refused in one line."""

import json
from pathlib import Path

import pytest

from tests.support.released_tasks import MMBENCH_ROTATED, RELEASED, mmbench
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.tasks.registry import TASKS, find_judge, find_prompt, find_task


@pytest.mark.parametrize("answer", ["", "nan", "E", "AB"])
def test_a_row_of_mmbench_without_an_answer_is_refused(answer: str, tmp_path: Path) -> None:
    mmbench(tmp_path, [MMBENCH_ROTATED[0], (*MMBENCH_ROTATED[1][:-1], answer)])
    message = rf"tsv:3 is no question of MMBench: its answer '{answer}' is none of A, B, C, D\."
    with pytest.raises(DataError, match=message):
        find_task("mmbench").read(tmp_path)


def test_an_image_of_mme_has_two_questions(tmp_path: Path) -> None:
    RELEASED["mme"](tmp_path)
    (tmp_path / "count/0001.txt").write_text("Is it red?\tYes\n")
    with pytest.raises(DataError, match=r"count/0001.txt holds 1 questions, not the 2 of an image"):
        find_task("mme").read(tmp_path)


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gqa is not asked as llava does\. There is one prompt"):
        find_prompt(TASKS["gqa"], "llava")
    with pytest.raises(ConfigError, match=r"vqa is no task\. Give one of vqav2, vqav2_test, okvqa"):
        find_task("vqa")
    with pytest.raises(ConfigError, match=r"gqa is not judged as x does\. There is lmms-eval, ll"):
        find_judge(TASKS["gqa"], "x")
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

"""The digits corpus: held-out images stay held out, questions are balanced, bytes never change."""

import importlib.util
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from vila_mc.data.ingest.corpus_text import read_sentences
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import read as read_source
from vila_mc.data.sources.text import TextSource
from vila_mc.flow import RawSample

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits.py"
TRAINING_FILES = ("pairs.jsonl", "interleaved.jsonl", "conversations.json", "instructions.jsonl")
NUM_HELD_OUT = 360
NUM_TRAINING = (1797 - NUM_HELD_OUT) * 8  # each digit and its seven variants


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    sys.path.insert(0, str(SCRIPT.parent))  # as when it is started
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module  # where dataclasses look up their own module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("digits") / "made" / "on the way"
    done = run_script(output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def values(script: ModuleType) -> dict[str, int]:
    training, held_out, _ = script.load_digits(1437, NUM_HELD_OUT, 7)
    return {digit.name: digit.value for digit in [*training, *held_out]}


def read(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        records: list[dict[str, Any]] = json.loads(text)
        return records
    return [json.loads(line) for line in text.splitlines()]


def image_names(record: dict[str, Any]) -> list[str]:
    if "image_info" in record:
        return [info["image_name"] for info in record["image_info"]]
    return record.get("images", [record["image"]] if "image" in record else [])


def turns(corpus: Path) -> list[tuple[list[str], str, str]]:
    """(images, question, answer) of every exchange, with the images of its conversation."""
    found = []
    for name in ("conversations.json", "instructions.jsonl"):
        for record in read(corpus / name):
            spoken = [turn["value"] for turn in record["conversations"]]
            found += [
                (image_names(record), question, answer)
                for question, answer in zip(spoken[::2], spoken[1::2], strict=True)
            ]
    return found


def test_every_picture_is_a_grey_png_of_28_pixels(corpus: Path, values: dict[str, int]) -> None:
    files = sorted((corpus / "images").iterdir())
    assert [file.name for file in files] == sorted(values)
    for file in files[::100]:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))


def test_pictures_are_the_digits_of_scikit_learn(corpus: Path) -> None:
    from sklearn import datasets

    originals = datasets.load_digits().images
    for index in (0, 700, 1796):
        with Image.open(corpus / "images" / f"digit-{index:04d}.png") as image:
            small = image.resize((8, 8), Image.Resampling.BOX)
            shown = list(small.tobytes())
        drawn = (originals[index].ravel() * 255 / 16).tolist()
        assert sum(abs(a - b) for a, b in zip(shown, drawn, strict=True)) / 64 < 20


def test_held_out_images_are_in_no_training_file(corpus: Path, values: dict[str, int]) -> None:
    names = sorted(values)
    training = {
        name
        for file in TRAINING_FILES
        for record in read(corpus / file)
        for name in image_names(record)
    }
    held_out = {name for record in read(corpus / "eval.jsonl") for name in record["images"]}
    assert held_out == {f"digit-{number:04d}.png" for number in range(1437, 1797)}
    assert training == set(names) - held_out
    assert len(training) == NUM_TRAINING


def test_variants_are_other_pictures_of_the_same_digit(
    corpus: Path, values: dict[str, int]
) -> None:
    for number in (0, 5, 1436):
        names = [f"digit-{number:04d}{suffix}.png" for suffix in ("", "-1", "-3", "-7")]
        assert len({(corpus / "images" / name).read_bytes() for name in names}) == 4
        assert len({values[name] for name in names}) == 1


def test_captions_name_their_digit(
    corpus: Path, script: ModuleType, values: dict[str, int]
) -> None:
    pairs = read(corpus / "pairs.jsonl")
    assert len({pair["caption"] for pair in pairs}) > 80
    for pair in pairs:
        value = values[pair["image"]]
        words = pair["caption"].replace(",", "").split()
        assert str(value) in words or script.WORDS[value] in words, pair


def test_documents_match_images_with_their_sentences(
    corpus: Path, script: ModuleType, values: dict[str, int]
) -> None:
    documents = read(corpus / "interleaved.jsonl")
    assert {len(document["image_info"]) for document in documents} == {2, 3, 4}
    for document in documents:
        matched = [info["matched_text_index"] for info in document["image_info"]]
        assert len(set(matched)) == len(matched)
        for info in document["image_info"]:
            value = values[info["image_name"]]
            words = document["text_list"][info["matched_text_index"]].rstrip(".").split()
            assert words[-1] in (str(value), script.WORDS[value])
        total = sum(values[info["image_name"]] for info in document["image_info"])
        assert f"together they make {total};" in document["text_list"][-1].lower()


def test_conversations_are_well_formed(corpus: Path) -> None:
    records = read(corpus / "conversations.json")
    assert 35000 <= len(records) <= 37000
    assert len({record["id"] for record in records}) == len(records)
    assert {len(record["conversations"]) for record in records} == {2, 4, 6}
    for record in records:
        spoken = record["conversations"]
        assert [turn["from"] for turn in spoken] == ["human", "gpt"] * (len(spoken) // 2)
        markers = "<image>\n" * len(image_names(record))
        assert spoken[0]["value"].startswith(markers)
        assert sum(turn["value"].count("<image>") for turn in spoken) == len(image_names(record))


def test_answers_of_the_evaluated_questions_are_right(
    corpus: Path, script: ModuleType, values: dict[str, int]
) -> None:
    seen: Counter[Any] = Counter()
    for images, question, answer in turns(corpus):
        shown = [values[name] for name in images]
        if question == "<image>\n" + script.WHICH_DIGIT:
            assert answer == str(shown[0])
            seen["which"] += 1
        if question == "<image>\n<image>\n" + script.LARGER_DIGIT:
            assert shown[0] != shown[1]
            assert answer == str(max(shown))
            seen["larger", shown[0] > shown[1]] += 1
    assert seen["which"] > NUM_TRAINING
    assert abs(seen["larger", True] - seen["larger", False]) < 400


def test_instructions_are_text_only_and_asked_once(corpus: Path) -> None:
    records = read(corpus / "instructions.jsonl")
    questions = [record["conversations"][0]["value"] for record in records]
    assert len(set(questions)) == len(questions) > 400
    assert not any("<image>" in question for question in questions)
    assert not any(image_names(record) for record in records)


def test_the_tokenizer_sees_every_training_line(corpus: Path) -> None:
    files = [corpus / name for name in (*TRAINING_FILES, "text.jsonl")]
    sentences = read_sentences(files)
    lines = {line.strip() for text in sentences for line in text.splitlines()}
    assert not any("<image>" in line for line in lines)
    written = {record["text"] for record in read(corpus / "text.jsonl")}
    for _, question, answer in turns(corpus):
        written |= {*question.replace("<image>\n", "").split("\n"), answer}
    for record in read(corpus / "interleaved.jsonl"):
        written |= set(record["text_list"])
    for record in read(corpus / "pairs.jsonl"):
        written.add(record["caption"])
    assert written <= lines


def test_the_quickstart_learns_its_tokenizer_from_the_training_files_alone() -> None:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT.parent / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module
    spec.loader.exec_module(module)
    assert {file for _, file in module.RAW} == {*TRAINING_FILES, "text.jsonl"}


def test_which_digit_asks_once_about_every_held_out_digit(
    corpus: Path, values: dict[str, int]
) -> None:
    rows = [row for row in read(corpus / "eval.jsonl") if row["task"] == "which_digit"]
    assert [row["images"] for row in rows] == [[name] for name in sorted(values)[-NUM_HELD_OUT:]]
    assert all(row["answer"] == str(values[row["images"][0]]) for row in rows)
    assert {row["chance"] for row in rows} == {0.1}


def test_larger_digit_is_balanced_and_chance_is_the_best_constant_answer(
    corpus: Path, values: dict[str, int]
) -> None:
    rows = [row for row in read(corpus / "eval.jsonl") if row["task"] == "larger_digit"]
    assert len({tuple(row["images"]) for row in rows}) == len(rows) == 360
    shown = Counter(tuple(values[name] for name in row["images"]) for row in rows)
    assert len(shown) == 90  # ordered pairs of distinct digits
    assert set(shown.values()) == {4}
    assert all(row["answer"] == str(max(values[name] for name in row["images"])) for row in rows)
    best = max(Counter(row["answer"] for row in rows).values()) / len(rows)
    assert {row["chance"] for row in rows} == {best} == {0.2}


def test_evaluated_questions_are_worded_as_in_training(corpus: Path) -> None:
    trained = {question for _, question, _ in turns(corpus)}
    for row in read(corpus / "eval.jsonl"):
        assert "<image>\n" * len(row["images"]) + row["question"] in trained
    assert len({row["id"] for row in read(corpus / "eval.jsonl")}) == 720


def test_our_own_readers_accept_every_record(corpus: Path) -> None:
    images = ImageFolder(corpus / "images")
    for source, count in (
        (PairSource([corpus / "pairs.jsonl"], images), 11496),
        (InterleavedSource([corpus / "interleaved.jsonl"], images), 2400),
        (ConversationSource([corpus / "conversations.json"], images), 35992),
        (ConversationSource([corpus / "instructions.jsonl"], images), 410),
        (TextSource([corpus / "text.jsonl"]), 1500),
    ):
        assert [type(sample) for sample in read_source(source)] == [RawSample] * count


def test_a_second_run_gives_the_same_bytes_and_leaves_nothing_behind(
    corpus: Path, tmp_path: Path
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        files = (file for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    (tmp_path / "pairs.jsonl").write_text("from an older version")
    before = contents(corpus)
    assert run_script(corpus).returncode == 0
    assert run_script(tmp_path).returncode == 0
    assert contents(corpus) == before == contents(tmp_path)
    assert sorted(path.name for path in corpus.iterdir()) == sorted(
        [*TRAINING_FILES, "eval.jsonl", "images", "text.jsonl"]
    )


def test_users_mistakes_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, words in (
        ([file], "a file is in the way. Name another directory"),
        ([file / "below"], "a file is in the way. Name another directory"),
        ([], "the following arguments are required: OUT_DIR"),
        ([tmp_path, "--seed=1"], "seed is not an option"),
    ):
        done = run_script(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr

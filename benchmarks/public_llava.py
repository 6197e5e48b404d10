"""LLaVA's scripts beside our metrics, and on the files of answers that we write.

    python benchmarks/public_llava.py --llava DIR

DIR is a checkout of haotian-liu/LLaVA, whose scripts are run: give one that you trust. Prints how
many of 5,000 random answers are judged otherwise, and for each script whether it took a file of
answers to the tiny tasks of tests/support/released_tasks.py and made of it what it should. With
pandas and openpyxl MMBench's is among them. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import random
import re
import runpy
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from public_metrics import COUNT, Compared, accuracy, count_differing, module, text

from tests.support.released_tasks import RELEASED
from vila_mc.evaluation.metrics.human_answers import human_accuracy, submitted
from vila_mc.evaluation.metrics.yes_no import YesNoScore, pope_score, read_pope
from vila_mc.evaluation.tasks.kept_answers import Kept, write_answers
from vila_mc.evaluation.tasks.registry import find_task
from vila_mc.evaluation.tasks.task import Item

_SCIENCE = (
    *("B", "b", "C. cat", "A.x", "A.", "(B)", "E", "F", "The answer is B.", "The answer is C"),
    *("So: The answer is D. ", "The answer is F.", "The answer is A. The answer is B."),
)
"""What may be said to ScienceQA."""


def metrics(root: Path, folder: Path, random_: random.Random) -> Compared:
    """What we say of answers, and what LLaVA's scripts say."""
    yield from _pope(root, folder, random_)
    yield from _science(root, folder, random_)
    yield from _seed(root, folder, random_)
    yield from _words(root, folder, random_)


def _pope(root: Path, folder: Path, random_: random.Random) -> Compared:
    evaluate = module(root / "llava/eval/eval_pope.py").eval_pope
    for _ in range(COUNT // 50):
        said = ("yes", "No", "no, it is", "Yes. not", "There is not.", text(random_))
        answers = [random_.choice(said) for _ in range(50)]
        right = [random_.choice(("yes", "no")) for _ in answers]
        _lines(folder / "labels", [{"label": one} for one in right])
        given = [{"text": answer} for answer in answers]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            evaluate(given, str(folder / "labels"))
        read = [read_pope(answer, "first_sentence") for answer in answers]
        for ours, theirs in zip(read, given, strict=True):
            yield "POPE reading", ours, theirs["text"]
        found = dict(re.findall(r"(?m)^(.*): (.*)$", printed.getvalue()))
        score = pope_score(read, right)
        names = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
        for field, name in zip(YesNoScore.__slots__, names, strict=True):
            yield f"POPE {field}", getattr(score, field), float(found[name])


def _science(root: Path, folder: Path, random_: random.Random) -> Compared:
    problems: dict[str, dict[str, Any]] = {}
    answers: dict[str, str] = {}
    for number in range(COUNT):
        choices = random_.randint(2, 5)
        problems[str(number)] = {"choices": [""] * choices, "answer": random_.randrange(choices)}
        answers[str(number)] = random_.choice((*_SCIENCE, text(random_))).strip()
    _lines(
        folder / "answers",
        [{"question_id": at, "text": said, "prompt": "<image>"} for at, said in answers.items()],
    )
    judged = _science_script(root, folder, problems, folder / "answers")[1]
    right = {row["question_id"] for row in judged["correct"]}
    for at, problem in problems.items():
        items = [Item(at, "", expected=("ABCDE"[problem["answer"]],))]
        ours = accuracy("scienceqa", "llava", items, [answers[at]])
        yield "ScienceQA", ours, float(at in right)


def _seed(root: Path, folder: Path, random_: random.Random) -> Compared:
    """Beside a question that is right, as the script fails at a type of which none is."""
    script = module(root / "scripts/convert_seed_for_submission.py")
    for _ in range(COUNT):
        right, said = random_.choice("ABCD"), random_.choice(("A", "B", "b", "C. cat", "D", "D."))
        asked = {"answer": right, "data_type": "image", "question_type_id": 1}
        script.__dict__["data"] = {"questions": [asked | {"question_id": at} for at in ("7", "8")]}
        answers = {7: right, 8: said}
        rows = [{"question_id": at, "text": answer} for at, answer in answers.items()]
        _lines(folder / "answers", rows)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            script.eval_single(str(folder / "answers"), eval_only_type="image")
        theirs = float(printed.getvalue().split()[-1].rstrip("%")) / 100
        items = [Item(str(at), "", expected=(right,)) for at in answers]
        yield "SEED-Bench", accuracy("seed", "llava", items, [*answers.values()]), theirs


def _words(root: Path, folder: Path, random_: random.Random) -> Compared:
    evaluator = module(root / "llava/eval/m4c_evaluator.py").TextVQAAccuracyEvaluator()
    answers = [random_.choice(("yes", "No.", "Red..", text(random_))) for _ in range(COUNT)]
    _lines(folder / "answers", [{"question_id": 0, "text": said} for said in answers])
    for said, row in zip(answers, _converted_gqa(root, folder, folder / "answers"), strict=True):
        right = random_.choice(("yes", "no", "red", said.lower()))
        ours = accuracy("gqa", "llava", [Item("", "", expected=(right,))], [said])
        yield "GQA", ours, float(row["prediction"] == right)  # as GQA's eval.py compares them
        people = random_.choices((said, text(random_, 2), text(random_, 2)), k=10)
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for each answer
            theirs = evaluator.eval_pred_list([{"pred_answer": said, "gt_answers": people}])
        yield "TextVQA", human_accuracy(said, people, "evalai"), theirs


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(script: Path, said: io.StringIO | None = None, **options: Path | str) -> str:
    """What a script prints, also where it fails. ``a_b`` is its option ``--a-b``."""
    printed = said or io.StringIO()
    given = [str(word) for name, value in options.items() for word in (_option(name), value)]
    processor = script.parents[1] / "eval/m4c_evaluator.py"
    if script.parent.name == "scripts":
        processor = script.parents[1] / "llava/eval/m4c_evaluator.py"
    played = types.ModuleType("llava.eval.m4c_evaluator")  # without LLaVA's models
    exec(compile(processor.read_text(), str(processor), "exec"), played.__dict__)
    modules = {"llava": types.ModuleType("llava"), "llava.eval": types.ModuleType("llava.eval")}
    with (
        mock.patch.dict(sys.modules, modules | {played.__name__: played}),
        mock.patch("sys.argv", [str(script), *given]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _science_script(root: Path, folder: Path, problems: Any, answers: Path) -> tuple[str, Any]:
    """What it prints, and the rows that it judged."""
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [*problems]}))
    output = folder / "judged.json"
    printed = _run(
        root / "llava/eval/eval_science_qa.py",
        base_dir=folder,
        result_file=answers,
        output_file=output,
        output_result=folder / "result.json",
    )
    return printed, json.loads(output.read_text())


def _converted_gqa(root: Path, folder: Path, answers: Path) -> Any:
    _run(root / "scripts/convert_gqa_for_eval.py", src=answers, dst=folder / "gqa.json")
    return json.loads((folder / "gqa.json").read_text())


def _answered(name: str, data: Path, says: Callable[[Item], str]) -> tuple[list[Item], Path]:
    """A tiny task and our file of answers to it."""
    RELEASED[name](data)
    items = find_task(name).read(data)
    kept = [
        Kept(id=item.id, answer=says(item), is_cut=False, prompt="", demonstrations=[])
        for item in items
    ]
    write_answers(data / "answers.jsonl", "model", items, kept)
    return items, data / "answers.jsonl"


def _figures(name: str, judge: str, items: list[Item], answers: list[str]) -> dict[str, float]:
    figures = find_task(name).judges[judge](items, answers)
    return {one.name: one.value for one in figures}


Tried = Iterator[tuple[str, Any, Any]]
"""Script and task, what it should make of our answers, what it makes."""


def files(root: Path, folder: Path) -> Tried:
    """Each script on a file of answers."""
    yield from _evaluated(root, folder)
    yield from _converted(root, folder)
    if importlib.util.find_spec("pandas") and importlib.util.find_spec("openpyxl"):
        yield from _spreadsheets(root, folder)
    else:
        print("pandas and openpyxl are not installed: MMBench's script is not tried")


def _evaluated(root: Path, folder: Path) -> Tried:
    data = folder / "scienceqa"
    items, answers = _answered("scienceqa", data, lambda _: "B")
    problems = {
        item.id: {"choices": ["one", "two"], "answer": "AB".index(item.expected[0])}
        for item in items
    }
    printed, _ = _science_script(root, data, problems, answers)
    ours = _figures("scienceqa", "llava", items, ["B"] * len(items))
    shares = [f"{ours[name]:.2f}%" for name in ("accuracy", "with an image")]
    yield "eval_science_qa.py, scienceqa", shares, re.findall(r"Accuracy: (\S+%)", printed)

    data = folder / "pope"
    items, answers = _answered("pope", data, lambda _: "Yes, there is.")
    script = root / "llava/eval/eval_pope.py"
    printed = _run(script, annotation_dir=data / "coco", question_file=answers, result_file=answers)
    ours = _figures("pope", "llava", items, ["Yes"] * len(items))
    sets = re.findall(r"Category: (\w+)", printed)
    f1s = [round(ours[f"{name} F1"] / 100, 9) for name in sets]
    found = [round(float(one), 9) for one in re.findall(r"F1 score: (\S+)", printed)]
    yield "eval_pope.py, pope", f1s, found

    data = folder / "textvqa"
    items, answers = _answered("textvqa", data, lambda item: item.expected[0])
    file = data / "TextVQA_0.5.1_val.json"
    script = root / "llava/eval/eval_textvqa.py"
    printed = _run(script, annotation_file=file, result_file=answers)
    yield "eval_textvqa.py, textvqa", ["100.00%"], re.findall(r"Accuracy: (\S+)", printed)

    data = folder / "seed"
    items, answers = _answered("seed", data, lambda item: item.expected[0])
    script = root / "scripts/convert_seed_for_submission.py"
    said = io.StringIO()
    given = {"annotation_file": data / "SEED-Bench.json", "result_file": answers}
    with contextlib.suppress(KeyError, ValueError):  # at a video, which is not asked about
        _run(script, said, result_upload_file=data / "upload", **given)
    shares = re.findall(r"image accuracy: (\S+)", said.getvalue())
    yield "convert_seed_for_submission.py, seed", ["100.00%"], shares


def _converted(root: Path, folder: Path) -> Tried:
    said = submitted("Two, dogs", "evalai")
    for name in ("vqav2", "vqav2_test"):
        data = folder / name
        items, answers = _answered(name, data, lambda _: "Two, dogs")
        merged = data / "answers/split/model/merge.jsonl"
        merged.parent.mkdir(parents=True)
        merged.write_text(answers.read_text())
        _lines(
            data / "llava_vqav2_mscoco_test2015.jsonl",
            [{"question_id": item.llava_id} for item in items],
        )
        script = root / "scripts/convert_vqav2_for_submission.py"
        _run(script, dir=data, ckpt="model", split="split")
        found = json.loads((data / "answers_upload/split/model.json").read_text())
        expected = [{"question_id": item.llava_id, "answer": said} for item in items]
        yield f"convert_vqav2_for_submission.py, {name}", expected, found
    for name in ("vizwiz", "vizwiz_test"):
        data = folder / name
        items, answers = _answered(name, data, lambda _: "Two, dogs")
        _lines(data / "asked", [{"question_id": item.id, "image": item.id} for item in items])
        _run(
            root / "scripts/convert_vizwiz_for_submission.py",
            annotation_file=data / "asked",
            result_file=answers,
            result_upload_file=data / "upload/answers.json",
        )
        found = json.loads((data / "upload/answers.json").read_text())
        expected = [{"image": item.id, "answer": said} for item in items]
        yield f"convert_vizwiz_for_submission.py, {name}", expected, found
    data = folder / "gqa"
    items, answers = _answered("gqa", data, lambda _: "Yes.")
    expected = [{"questionId": item.id, "prediction": "yes"} for item in items]
    yield "convert_gqa_for_eval.py, gqa", expected, _converted_gqa(root, data, answers)
    data = folder / "mmvet"
    items, answers = _answered("mmvet", data, lambda _: "It is -1.")
    _run(root / "scripts/convert_mmvet_for_eval.py", src=answers, dst=data / "results")
    found = json.loads((data / "results").read_text())
    yield "convert_mmvet_for_eval.py, mmvet", {item.id: "It is -1." for item in items}, found


def _spreadsheets(root: Path, folder: Path) -> Tried:
    pandas: Any = importlib.import_module("pandas")
    for name in ("mmbench", "mmbench_test"):
        data = folder / name
        items, _ = _answered(name, data, lambda item: f"{item.id} it is")
        _run(
            root / "scripts/convert_mmbench_for_submission.py",
            annotation_file=next(data.glob("*.tsv")),
            result_dir=data,
            upload_dir=data,
            experiment="answers",
        )
        rows = pandas.read_excel(data / "answers.xlsx")
        found = dict(zip(map(str, rows["index"]), rows["prediction"], strict=True))
        expected = {item.id: f"{item.id} it is" for item in items}
        yield f"convert_mmbench_for_submission.py, {name}", expected, found


def main() -> int:
    """Compare, try, print, say whether all agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--llava", type=Path, metavar="DIR", required=True)
    root = parser.parse_args().llava
    with tempfile.TemporaryDirectory() as folder:
        differing = count_differing(metrics(root, Path(folder), random.Random(7)))
        for script, expected, found in files(root, Path(folder)):
            agrees = expected == found
            print(f"{script:<50} {'as it should' if agrees else f'{found}, not {expected}'}")
            differing += not agrees
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())

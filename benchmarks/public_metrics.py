"""Our metrics of public tasks beside the public code, on thousands of random answers.

    python benchmarks/public_metrics.py --lmms-eval DIR --lm-eval DIR --coco DIR --vqa DIR

Each DIR is a checkout: of EvolvingLMMs-Lab/lmms-eval, EleutherAI/lm-evaluation-harness (needs
scipy), salaniz/pycocoevalcap (or the installed package) and GT-Vision-Lab/VQA; what is not given is
left out, and said. Files are read from there and run, so give checkouts that you trust. With pandas
the rotations of MMBench are compared, with Java the words of captions with those of pycocoevalcap's
tokenizer. ``public_llava.py`` does the same with LLaVA's scripts.

Prints, for each metric, how many answers were compared and how many differ by more than 1e-9. Exit
status 1 if any does, or more than 0.5 % of the captions in their words.
"""

import argparse
import contextlib
import importlib.util
import io
import random
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vila_mc.evaluation.metrics.captions import caption_words, cider
from vila_mc.evaluation.metrics.choices import read_mmbench, read_science_qa, read_seed
from vila_mc.evaluation.metrics.human_answers import Form, human_accuracy
from vila_mc.evaluation.metrics.texts import anls, drop_score, is_equal
from vila_mc.evaluation.metrics.yes_no import mme_score, pope_score, read_mme, read_pope
from vila_mc.evaluation.tasks.registry import find_task
from vila_mc.evaluation.tasks.task import Item

COUNT = 5000
"""Answers of each comparison."""
_SAID = (
    "a the an cat dog red two ten none yes no No not don't dont its it's whos 1,000 3.5 12. 0 7 "
    "U.S. e.g. left-hand and/or (blue) what? ok! 50% $5 #1 he's hed wouldn'tve y'all [x] A B. C) "
    "(D) black&white half-full St. Dr. 10,5 .5 -3 1e3 nan cannot o'clock 7-up"
)
_WORDS = _SAID.split()
_CAPTIONED = "a the man dog on with red bus street two people of in sitting table"
_HARD = (
    "woman's don't t-shirt two-story 10 2.5 1,000 mid-air U.S. 7:30 5th (left) o'clock cannot w/ & "
    "and/or child\u2019s boys' it's they're \"stop\" 'hello' #1 $5 50% ... -- A.M. mr. St. [1] "
    "gonna wanna black-and-white 1/2 e.g. café"
)
_MAY_DIFFER = {"words of captions": 0.005}
"""Share of captions; all else must not differ."""
_JOINS = (" ", " ", " ", " ", ", ", "\n", "\t", "  ", "-", ". ", "")


def text(random_: random.Random, most: int = 5) -> str:
    """Words, marks and numbers as a model may say them."""
    count = random_.randint(0, most)
    parts = []
    for _ in range(count):
        word = random_.choice(_WORDS)
        parts += [random_.choice((word, word, word.upper(), word.capitalize()))]
        parts += [random_.choice(_JOINS)]
    return "".join(parts)


def caption(random_: random.Random) -> str:
    """A sentence as people write captions, every fifth word one that is hard to take apart."""
    words = [
        random_.choice((_CAPTIONED if random_.random() < 0.8 else _HARD).split())
        for _ in range(random_.randint(4, 12))
    ]
    joins = random_.choices((" ", ", ", ". ", "; ", "  "), weights=(12, 1, 1, 1, 1), k=len(words))
    joins[-1] = random_.choice((".", ".", "", " .", "!"))
    return "".join(word + join for word, join in zip(words, joins, strict=True)).capitalize()


def module(path: Path, edit: Callable[[str], str] = str) -> types.ModuleType:
    """A file of a checkout as a module; what it imports for its own logs is played."""
    for name in ("loguru", "datasets", "pandas", "requests", "lmms_eval", "pdb"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            played: Any = types.ModuleType(name)
            played.logger = types.SimpleNamespace(info=lambda _: None)
            played.isna = played.notna = lambda value: value is None
            sys.modules[name] = played
    loaded = types.ModuleType(path.stem)
    loaded.__dict__["__file__"] = str(path)
    exec(compile(edit(path.read_text()), str(path), "exec"), loaded.__dict__)
    return loaded


def without_package_imports(source: str) -> str:
    """lmms-eval's tasks without what they import of the package itself."""
    return re.sub(r"(?m)^(from|import) lmms_eval.*$", "", source)


def as_python_3(source: str) -> str:
    """The official VQA code is of Python 2."""
    return re.sub(r'print "(.*)"', r'print("\1")', source)


Compared = Iterator[tuple[str, Any, Any]]
"""Metric, what we say, what the public code says."""


def of_lmms_eval(root: Path, random_: random.Random) -> Compared:
    """What we say and what lmms-eval says."""
    tasks = root / "lmms_eval/tasks"
    processor = module(tasks / "_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor
    scorers: dict[Form, Any] = {}
    tasks_of_forms: dict[Form, str] = {"normalized": "vqav2", "evalai": "textvqa"}
    for form, task in tasks_of_forms.items():
        scorer = module(tasks / task / "utils.py", without_package_imports)
        scorer.__dict__["EvalAIAnswerProcessor"] = processor
        scorers[form] = getattr(scorer, f"{task}_process_results")
    for _ in range(COUNT):
        people, answer = [text(random_, 2) for _ in range(10)], text(random_, 2)
        people += random_.choices([answer, *people], k=random_.randint(0, 10))
        people = people[-10:]
        with_ids = [{"answer": said, "answer_id": at} for at, said in enumerate(people)]
        answers_of_forms: dict[Form, Any] = {"normalized": with_ids, "evalai": [*people]}
        for form, known in answers_of_forms.items():
            document = {"answers": known, "question_id": 0}
            theirs = scorers[form](document, [answer])["exact_match"]
            yield f"VQA accuracy, {form}", human_accuracy(answer, people, form), theirs
    yield from _yes_no(tasks, random_)
    yield from _choices(tasks, random_)
    yield from _texts(root, random_)
    if importlib.util.find_spec("pandas") is None:
        print("pandas is not installed: rotations of MMBench are not compared")
    else:
        yield from _rotations(tasks, random_)


def _texts(root: Path, random_: random.Random) -> Compared:
    theirs = module(root / "lmms_eval/api/metrics.py", anls_alone).anls
    equal = module(root / "lmms_eval/api/metrics.py", equality_alone).exact_match_hf_evaluate
    for _ in range(COUNT):
        right, answer = [text(random_) for _ in range(3)], text(random_)
        if random_.random() < 0.5:
            answer = random_.choice(right)[: random_.randint(1, 30)] + random_.choice(
                ("", "x", " ")
            )
        yield "ANLS", anls(answer, right), theirs(right, [answer])["anls"]
        how = {"ignore_case": True, "ignore_punctuation": True}
        same = equal([answer], [right[0]], **how)["exact_match"]
        yield "GQA", float(is_equal(answer, right[0])), float(same)


def anls_alone(source: str) -> str:
    """What stands between two functions of lmms-eval's metrics, which import much else."""
    part = source[source.index("def levenshtein_distance") : source.index("def pop_stddev")]
    return re.sub(r"(?ms)^@register_metric\(.*?^\)$", "", part)


def equality_alone(source: str) -> str:
    """As ``anls_alone``, the exact match."""
    start = source.index("def exact_match_hf_evaluate")
    part = source[start : source.index("@register_metric", start)]
    return "import re, string\nimport numpy as np\n" + part


def _yes_no(tasks: Path, random_: random.Random) -> Compared:
    pope, mme = (module(tasks / name / "utils.py") for name in ("pope", "mme"))
    for _ in range(COUNT // 50):
        answers = [random_.choice((text(random_), "yes", "No", "no ", "Yes")) for _ in range(50)]
        right = [random_.choice(("yes", "no")) for _ in answers]
        rows = [
            pope.pope_process_results({"answer": r, "question_id": 0}, [a])["pope_f1_score"]
            for a, r in zip(answers, right, strict=True)
        ]
        ours = pope_score([read_pope(answer, "exact") for answer in answers], right)
        for ours_name, name in (
            ("accuracy", "accuracy"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1_score"),
        ):
            theirs = getattr(pope, f"pope_aggregate_{name}")(rows)
            yield f"POPE {ours_name}", getattr(ours, ours_name), theirs
    for _ in range(COUNT):
        answer = random_.choice((text(random_), "Yes.", "y", "n", "no, it", "not", "eyes"))
        yield "MME reading", read_mme(answer), mme.parse_pred_ans(answer)
    for _ in range(COUNT // 50):
        rows = [
            (random_.choice(("count", "OCR", "scene")), str(image), random_.random() < 0.6)
            for image in range(25)
        ]
        pairs = [(c, i, random_.random() < 0.6) for c, i, _ in rows] + rows
        said = [{"question_id": i, "category": c, "score": float(right)} for c, i, right in pairs]
        yield "MME score", sum(mme_score(pairs).values()), mme.mme_aggregate_results(said)


def _choices(tasks: Path, random_: random.Random) -> Compared:
    science, seed = (module(tasks / name / "utils.py") for name in ("scienceqa", "seedbench"))
    bench = module(tasks / "mmbench/mmbench_evals.py").MMBench_Evaluator()
    for _ in range(COUNT):
        answer = random_.choice((text(random_), "B", "b", "C. cat", "A. x", "(B) is right", "D:"))
        right = random_.choice("ABCD")
        document = {"choices": [""] * 4, "answer": "ABCD".index(right)}
        theirs = science.sqa_process_results(document, [answer])["exact_match"]
        yield "ScienceQA", float(read_science_qa(answer) == right), theirs
        row = seed.seed_process_result(
            {"answer": right, "data_type": "x", "question_id": 0}, [answer]
        )
        theirs = seed.seed_aggregation_result([row["seed_all"]])
        yield "SEED-Bench", float(read_seed(answer) == right), theirs
        choices = {letter: random_.choice(_WORDS) for letter in "ABCD"[: random_.randint(2, 4)]}
        yield (
            "MMBench",
            read_mmbench(answer, choices) or False,
            bench.can_infer(answer, {**choices}),
        )


def _rotations(tasks: Path, random_: random.Random) -> Compared:
    """50 rows of MMBench at a time, most answered right; a letter that is not found is wrong."""
    bench = module(tasks / "mmbench/mmbench_evals.py").MMBench_Evaluator()
    bench.extract_answer_from_item = lambda _: (None, "")  # which asks another model
    for _ in range(COUNT // 50):
        items: list[Item] = []
        answers: list[str] = []
        rows: list[dict[str, Any]] = []
        while len(items) < 50:
            question, turns = str(len(items) + 1), random_.randint(1, min(4, 50 - len(items)))
            for turn in range(turns):
                right = random_.choice("ABCD")
                answer = random_.choice((right, right, right, f"({right})", text(random_)))
                choices = {letter: f"choice {letter}" for letter in "ABCD"}
                index = 1_000_000 * turn + int(question)
                item = Item(str(index), "", expected=(right,), choices=choices, pair=question)
                items.append(item)
                answers.append(answer)
                row = {"index": index, "category": "x", "answer": right, "prediction": answer}
                rows.append(row | choices)
        random_.shuffle(rows)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = bench.eval_result(rows, "openai")[0]
        yield "MMBench with rotations", accuracy("mmbench", "lmms-eval", items, answers), theirs


def accuracy(name: str, judge: str, items: list[Item], answers: list[str]) -> float:
    """From 0 to 1, as the task is judged."""
    return find_task(name).judges[judge](items, answers)[0].value / 100


def of_lm_eval(root: Path, random_: random.Random) -> Compared:
    """DROP and BBH."""
    drop = module(root / "lm_eval/tasks/drop/utils.py")
    for _ in range(COUNT):
        right = [[text(random_) for _ in range(random_.randint(1, 4))] for _ in range(3)]
        said = [text(random_) for _ in range(random_.randint(1, 3))]
        if random_.random() < 0.3:
            said = [*random_.choice(right)]
        theirs = drop.process_results({"answers": right}, said)
        match, f1 = drop_score(said, right)
        yield "DROP exact match", match, theirs["em"]
        yield "DROP F1", f1, theirs["f1"]
    template = (root / "lm_eval/tasks/bbh/cot_fewshot/_cot_fewshot_template_yaml").read_text()
    pattern = re.search('regex_pattern: "(.*)"', template)
    assert pattern is not None
    extraction = module(root / "lm_eval/filters/extraction.py", filters_alone)
    find = extraction.RegexFilter(pattern[1])
    for _ in range(COUNT):
        target = random_.choice(("True", "(A)", "3", "no", "red cat", "."))
        end = random_.choice((".", " .", "", "!", ". So", "\n", ".\nthe answer is 3."))
        answer = f"{text(random_)}the answer is {random_.choice((target, text(random_)))}{end}"
        ours = accuracy("bbh", "lm-eval", [Item("", "", expected=(target,))], [answer])
        yield "BBH", ours, float(find.apply([[answer]], [])[0][0] == target)


def filters_alone(source: str) -> str:
    """lm-eval's filters without its registry of them."""
    played = "class Filter: pass\ndef register_filter(name): return lambda kind: kind\n"
    return source.replace("from lm_eval.api.filter import Filter", played).replace(
        "from lm_eval.api.registry import register_filter", ""
    )


def of_vqa(root: Path, random_: random.Random) -> Compared:
    """The official VQA accuracy."""
    path = root / "PythonEvaluationTools/vqaEvaluation/vqaEval.py"
    official = module(path, as_python_3).VQAEval
    official.updateProgress = lambda *_: None
    for _ in range(COUNT):
        people, answer = [text(random_, 2) for _ in range(10)], text(random_, 2)
        people = random_.choices([answer, *people[: random_.randint(0, 4)]], k=10)
        known = [{"answer": said, "answer_id": at} for at, said in enumerate(people)]
        qa = {0: {"answers": known, "question_type": "", "answer_type": ""}}
        judge = official.__new__(official)
        official.__init__(judge, *_played_sets(qa, answer), n=12)
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
        theirs = judge.accuracy["overall"] / 100
        yield "VQA accuracy, official", human_accuracy(answer, people, "official"), theirs


def _played_sets(qa: Any, answer: str) -> tuple[Any, Any]:
    known = types.SimpleNamespace(qa=qa, getQuesIds=lambda: [0])
    return known, types.SimpleNamespace(qa={0: {"answer": answer}})


def of_coco(root: Path, random_: random.Random) -> Compared:
    """CIDEr-D, and with Java the words."""
    scorer = module(root / "cider/cider_scorer.py").CiderScorer
    words = _CAPTIONED.split()
    for _ in range(100):

        def sentence() -> list[str]:
            return random_.choices(words, k=random_.randint(1, 14))

        captions = [sentence() for _ in range(COUNT // 100)]
        references = [[sentence() for _ in range(5)] for _ in captions]
        for said, group in zip(captions, references, strict=True):
            if random_.random() < 0.5:
                said[:] = group[0][: random_.randint(1, 14)] + said[:3]
        judge = scorer()
        for said, group in zip(captions, references, strict=True):
            judge += (" ".join(said), [" ".join(one) for one in group])
        theirs = judge.compute_score()[1]
        for ours, their in zip(cider(captions, references), theirs, strict=True):
            yield "CIDEr-D", ours, float(their)
    if shutil.which("java"):
        tokenizer = _tokenizer(root)
        written = [caption(random_) for _ in range(COUNT)]
        theirs = tokenizer.tokenize({at: [{"caption": one}] for at, one in enumerate(written)})
        for at, one in enumerate(written):
            yield "words of captions", " ".join(caption_words(one)), theirs[at][0]


def _tokenizer(root: Path) -> Any:
    sys.path.insert(0, str(root.parent))
    return importlib.import_module(f"{root.name}.tokenizer.ptbtokenizer").PTBTokenizer()


def main() -> int:
    """Compare, print, say whether all agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    kinds = {"lmms-eval": of_lmms_eval, "lm-eval": of_lm_eval, "coco": of_coco, "vqa": of_vqa}
    for name in kinds:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", dest=name)
    given = vars(parser.parse_args())
    differing = 0
    for name, compare in kinds.items():
        if given[name] is None:
            print(f"--{name} is not given: not compared")
            continue
        differing += count_differing(compare(given[name], random.Random(7)))
    return int(differing > 0)


def count_differing(comparisons: Compared) -> int:
    """Metrics that differ more often than they may. Prints each."""
    counts: dict[str, list[int]] = {}
    for metric, ours, theirs in comparisons:
        count = counts.setdefault(metric, [0, 0])
        count[0] += 1
        is_number = isinstance(ours, float | int) and not isinstance(theirs, str)
        agrees = abs(ours - theirs) <= 1e-9 if is_number else ours == theirs
        count[1] += not agrees
        if not agrees and count[1] <= 3:
            print(f"  {metric}: ours {ours!r}, theirs {theirs!r}")
    for metric, (compared, differ) in counts.items():
        print(f"{metric:<26} {compared:6} compared, {differ:5} differ")
    return sum(
        differ > _MAY_DIFFER.get(metric, 0.0) * compared
        for metric, (compared, differ) in counts.items()
    )


if __name__ == "__main__":
    sys.exit(main())

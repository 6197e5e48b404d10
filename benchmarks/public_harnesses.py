"""Our exports inside lmms-eval and lm-evaluation-harness, as published, beside our own tool.

    bash examples/quickstart.sh quickstart-out
    python benchmarks/public_harnesses.py --python PYTHON --quickstart quickstart-out

PYTHON is an interpreter with both harnesses (docs/evaluation.md says how to install them), started
as a user starts them, without a network. The quickstart's model is exported as hf-vila and llm;
for hf-llava, which takes other connectors, an mlp2x_gelu is trained between its frozen tower and
language model. Each harness and tools/evaluate.py then answer the same questions
(public_harness_tasks.py): TextVQA by lmms-eval's own task, MMLU by lm-eval's. Prints accuracies and
how many answers differ. Nothing of a harness or an export is changed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import Claim, parser, report
from public_harness_tasks import write_all

ROOT = Path(__file__).resolve().parents[1]
HARNESSES = ("lmms_eval", "lm_eval")
_CHECKPOINTS = {"hf-vila": "quickstart", "llm": "quickstart", "hf-llava": "mlp2x"}
"""Which model goes into each format."""


@dataclass(frozen=True)
class Run:
    """A model class of a harness, on an export."""

    harness: str
    model: str
    export: str
    """Its format."""
    task: str
    arguments: str
    """Of the class, besides where the export is."""
    options: tuple[str, ...] = ()
    note: str = ""

    def title(self) -> str:
        return f"{self.harness} {self.model}{self.note}, {self.export}, {self.task}"


_SHORT = ("--gen_kwargs", "max_new_tokens=16")
"""The task sets no length, and the class ``huggingface`` goes on for 4096 tokens."""
_CHAT = ("--apply_chat_template",)
RUNS = (
    Run("lmms_eval", "llava_hf", "hf-llava", "textvqa", "device_map=cpu", _SHORT),
    Run(
        "lmms_eval",
        "llava_hf",
        "hf-llava",
        "textvqa",
        "device_map=cpu",
        (*_SHORT, "--force_simple"),
        " (simple)",
    ),
    Run(
        "lmms_eval",
        "huggingface",
        "hf-vila",
        "textvqa",
        "device_map=cpu,trust_remote_code=True",
        _SHORT,
        note=" (always bf16)",
    ),
    Run("lm_eval", "hf-multimodal", "hf-llava", "textvqa", "", _CHAT),
    Run(
        "lm_eval",
        "hf-multimodal",
        "hf-vila",
        "textvqa",
        "trust_remote_code=True",
        _CHAT,
    ),
    Run("lm_eval", "hf", "llm", "mmlu", "", ("--num_fewshot", "5")),
)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--python", required=True, help="interpreter with the harnesses")
    options.add_argument("--quickstart", type=Path, required=True, help="output of a quickstart")
    options.add_argument("--count", type=int, default=100, help="questions of each task")
    options.add_argument("--steps", type=int, default=150, help="of training for hf-llava")
    options.add_argument("--work", type=Path, help="folder to keep, and to go on in if it is there")
    arguments = options.parse_args()
    if arguments.work is not None:
        return report(measure(arguments.work.resolve(), arguments), arguments)
    with tempfile.TemporaryDirectory(prefix="public-harnesses-") as folder:
        return report(measure(Path(folder), arguments), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> list[Claim]:
    """Export, ask in every way, compare."""
    quickstart = arguments.quickstart.resolve()
    homes = {name: home_of(name, arguments.python) for name in HARNESSES}
    write_all(quickstart, folder, homes, arguments.count)
    checkpoints = {"quickstart": quickstart / "runs/sft", "mlp2x": folder / "mlp2x"}
    if not checkpoints["mlp2x"].exists():
        train_connector(quickstart, checkpoints["mlp2x"], arguments.steps)
    claims: list[Claim] = []
    ours: dict[tuple[str, str], Answered] = {}
    for run in RUNS:
        name = _CHECKPOINTS[run.export]
        if (name, run.task) not in ours:
            found = ours[name, run.task] = our_answers(folder, checkpoints[name], run.task)
            claims.append(Claim(f"our own tool, {name}, {run.task}: score", found.score, "%"))
        if not (folder / run.export).exists():
            export(checkpoints[name], run.export, folder)
        claims += compare(run, their_answers(folder, run, arguments.python), ours[name, run.task])
    return claims


def compare(run: Run, theirs: "Answered", ours: "Answered") -> list[Claim]:
    """A harness beside our own tool."""
    pairs = zip(theirs.answers, ours.answers, strict=True)
    differ = sum(one != other for one, other in pairs)
    apart = abs(theirs.score - ours.score)
    title = f"{run.title()}: answers that differ of {len(ours.answers)}"
    return [
        Claim(f"{run.title()}: score", theirs.score, "%"),
        Claim(f"{run.title()}: score, apart from our own", apart, "points", 1e-6, "lower"),
        Claim(title, differ, "", 0, "lower"),
    ]


def home_of(package: str, python: str) -> Path:
    """Folder of an installed package, which is not imported."""
    code = (
        f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    )
    found = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return Path(found.stdout.strip())


def tool(name: str, *arguments: Any) -> None:
    """One of ours, whose lines go to stderr."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def train_connector(quickstart: Path, output: Path, steps: int) -> None:
    """A connector that hf-llava has, in the quickstart's model."""
    recipes = ROOT / "examples/quickstart"
    blend = [{"path": str(quickstart / "data/conversations")}]
    tool(
        "train.py",
        *("--ranks", 1, "--config", recipes / "model.yaml", "--config", recipes / "sft.yaml"),
        *("--model.connector.kind", "mlp2x_gelu", "--train.trainable", "[connector]"),
        *("--train.load", quickstart / "runs/sft", "--train.load_parts", "[vision, language]"),
        *("--data.blend", json.dumps(blend), "--train.steps", steps),
        *("--data.tokenizer", quickstart / "data/tokenizer.model", "--train.output", output),
    )


def export(checkpoint: Path, format: str, folder: Path) -> None:
    tool(
        "convert_checkpoint.py",
        *("export", "--checkpoint", checkpoint, "--output", folder / format),
        *("--format", format, "--dtype", "fp32"),
    )


@dataclass(frozen=True)
class Answered:
    """What came of a task."""

    answers: list[str]
    """In the order of the questions."""
    score: float
    """In percent, by the tool's own code."""


def our_answers(folder: Path, checkpoint: Path, task: str) -> Answered:
    """Of tools/evaluate.py, from the checkpoint itself."""
    output, figures = folder / "ours.jsonl", folder / "ours.json"
    output.unlink(missing_ok=True)
    tool(
        "evaluate.py",
        *("--checkpoint", checkpoint, "--task", task, "--data", folder / task),
        *("--output", output, "--figures", figures),
    )
    said = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    return Answered(said, json.loads(figures.read_text())["figures"][0]["value"])


def their_answers(folder: Path, run: Run, python: str) -> Answered:
    """Of a harness, from the export."""
    output = folder / "theirs" / str(RUNS.index(run))
    if not _written(output):
        start(folder, run, python, output)
    if len(found := _written(output)) != 2:  # lmms-eval ends with 0 after an error, too
        raise SystemExit(f"{run.title()} wrote {found}; what went wrong stands above.")
    rows = [json.loads(line) for line in found[0].read_text().splitlines()]
    figures = json.loads(found[1].read_text())["results"][f"local_{run.task}"]
    metric = "acc,none" if run.task == "mmlu" else "exact_match,none"
    return Answered(
        [_answer(row, run.task) for row in sorted(rows, key=lambda row: int(row["doc_id"]))],
        100 * figures[metric],
    )


def _written(output: Path) -> list[Path]:
    """Samples and results of a harness."""
    return [*output.rglob("*samples_local_*.jsonl"), *output.rglob("*results*.json")]


def start(folder: Path, run: Run, python: str, output: Path) -> None:
    """A harness, as from its own command line."""
    model = ",".join(filter(None, (f"pretrained={folder / run.export}", run.arguments)))
    command = [
        *(python, "-m", run.harness, "--model", run.model, "--model_args", model),
        *("--include_path", folder / run.harness, "--tasks", f"local_{run.task}"),
        *("--device", "cpu", "--batch_size", "1", "--output_path", output, "--log_samples"),
        *run.options,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["HF_HOME"] = str(folder / "hf-home")
    subprocess.run([*map(str, command)], check=True, stdout=sys.stderr, env=environment, cwd=folder)


def _answer(row: dict[str, Any], task: str) -> str:
    """Of a line of a harness's samples."""
    said = row["filtered_resps"]
    if task != "mmlu":
        return str(said[0] if isinstance(said, list) else said).strip()
    scores = [float(log_likelihood) for log_likelihood, _ in said]
    return "ABCD"[scores.index(max(scores))]


if __name__ == "__main__":
    sys.exit(main())

"""The main job from raw files to an exported, questioned model, each step by the ordinary tools.

    bash examples/quickstart.sh [OUT_DIR] [--smoke] [--precision P]

Trains a small VILA on scikit-learn's handwritten digits with 4 ranks (tensor 2 x pipeline 2).
Nothing pre-trained is used: the small ViT and the small LLM are trained as well.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from vila_mc import __version__
from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, ExitCode, run_cli
from vila_mc.evaluation.report import AnswerRow, write_report
from vila_mc.evaluation.scores import score
from vila_mc.files import write_json
from vila_mc.observe.console import clock
from vila_mc.observe.run_summary import read_run
from vila_mc.topology.layout import Layout

CHECKOUT = Path(__file__).resolve().parents[1]
RECIPES = CHECKOUT / "examples" / "quickstart"
VOCABULARY = 800
Precision = Literal["fp32", "bf16", "delayed", "current", "blockwise"]
"""The last three are recipes of FP8. MXFP8 wants sizes in multiples of 32, which these are not."""
RAW = (
    ("pairs", "pairs.jsonl"),
    ("interleaved", "interleaved.jsonl"),
    ("conversations", "conversations.json"),
    ("conversations", "instructions.jsonl"),
    ("text", "text.jsonl"),
)
"""Kind and file of each source."""
PHASES = ("align", "pretrain", "sft")
BLENDS = {
    "align": [("pairs", 1)],
    "pretrain": [("interleaved", 3), ("pairs", 1)],
    "sft": [("conversations", 18), ("instructions", 1), ("text", 1)],
}
TITLE = "A small VILA on handwritten digits"
QUESTION = "Which digit is this?\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Placement:
    """How many ranks train, and how."""

    ranks: int
    tensor: int
    pipeline: int

    @staticmethod
    def for_this_machine(*, smoke: bool) -> "Placement":
        """Tensor 2 x pipeline 2 on CPU ranks or four GPUs; two ranks to be quick or on two GPUs."""
        gpus = num_gpus()
        if gpus == 1:
            return Placement(ranks=1, tensor=1, pipeline=1)
        if smoke or gpus in (2, 3):
            return Placement(ranks=2, tensor=1, pipeline=2)
        return Placement(ranks=4, tensor=2, pipeline=2)


class StepFailedError(Exception):
    """A tool ended with an error it has explained itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


@dataclass(frozen=True)
class Step:
    """One part of the job; a finished one is not done again."""

    name: str
    run: Callable[["Quickstart"], None]


class Quickstart:
    """The job in one output directory, which it owns.

    Args:
        output: made if need be; must be empty or from an earlier quickstart.
        smoke: a little of everything, to see that all steps work; nothing is learnt.
        precision: what training computes in.

    Raises:
        ConfigError: the directory holds something else.
    """

    def __init__(self, output: Path, *, smoke: bool = False, precision: Precision = "fp32") -> None:
        self.output = output
        self.smoke = smoke
        self.precision = precision
        self.placement = Placement.for_this_machine(smoke=smoke)
        self.state_file = output / "quickstart.json"
        if output.exists() and any(output.iterdir()) and not self.state_file.exists():
            raise ConfigError(
                f"{output} holds files that no quickstart wrote. Name another directory, or an "
                "empty one."
            )
        output.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        if self.state_file.exists():
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
            if state["smoke"] != smoke:
                raise ConfigError(
                    f"{output} was begun {'with' if state['smoke'] else 'without'} --smoke. Go on "
                    "the same way, or name another directory."
                )
            if (begun := state.get("precision", "fp32")) != precision:
                raise ConfigError(
                    f"{output} was begun with --precision {begun}. Go on the same way, or name "
                    "another directory."
                )
            self.seconds = state["seconds"]
        if set(self.seconds) >= {step.name for step in STEPS}:
            self._start_afresh()
        self._keep_state()

    def run(self) -> int:
        """Do what is not done yet; returns the exit code."""
        started = time.monotonic()
        for number, step in enumerate(STEPS, start=1):
            title = f"[{number}/{len(STEPS)}] {step.name}"
            if step.name in self.seconds:
                print(f"{title}: done before", flush=True)
                continue
            print(f"{title}  ({clock(time.monotonic() - started)} since the start)", flush=True)
            step_started = time.monotonic()
            try:
                step.run(self)
            except StepFailedError as error:
                if error.code == ExitCode.INTERRUPTED:
                    print("interrupted; the same command goes on from here", file=sys.stderr)
                return error.code
            self.seconds[step.name] = round(time.monotonic() - step_started, 1)
            self._keep_state()
        total = sum(self.seconds.values())
        print(f"\ndone in {clock(total)}: {self.output / 'report.html'}, {self.result_file}")
        return 0

    @property
    def result_file(self) -> Path:
        """Figures of the whole job."""
        return self.output / "result.json"

    def tool(self, name: str, *arguments: str | Path) -> None:
        """Run one of our tools in a process of its own. Raises StepFailedError."""
        command = [sys.executable, str(CHECKOUT / name), *map(str, arguments)]
        process = subprocess.Popen(command)
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the tool got it too, and decides
                process.send_signal(signal.SIGINT)
        if code:
            raise StepFailedError(ExitCode.INTERRUPTED if code == -signal.SIGINT else code)

    def path(self, name: str) -> Path:
        """A file or folder of the job."""
        return self.output / name

    def _keep_state(self) -> None:
        begun = {"smoke": self.smoke, "precision": self.precision}
        write_json(self.state_file, {**begun, "seconds": self.seconds})

    def _start_afresh(self) -> None:
        for name in ("raw", "data", "runs", "hf"):
            shutil.rmtree(self.output / name, ignore_errors=True)
        self.seconds = {}


def make_raw_data(job: Quickstart) -> None:
    """Real digits as image files and raw data in the formats users have."""
    job.tool("examples/digits.py", job.path("raw"), *(["--smoke"] if job.smoke else []))


def preprocess(job: Quickstart) -> None:
    """A tokenizer, and an indexed dataset per source."""
    shutil.rmtree(job.path("data"), ignore_errors=True)  # of a run cut short
    job.path("data").mkdir()
    raw, tokenizer = job.path("raw"), job.path("data/tokenizer.model")
    job.tool(
        "tools/train_tokenizer.py",
        "--input",
        *(raw / file for _, file in RAW),
        *("--output", tokenizer, "--vocab-size", str(VOCABULARY)),
    )
    for kind, file in RAW:
        name = Path(file).stem
        images = () if kind == "text" else ("--images", raw / "images")
        job.tool(
            "tools/preprocess_data.py",
            *(kind, "--input", raw / file, *images),
            *("--output", job.path(f"data/{name}"), "--tokenizer", tokenizer),
        )


def train(phase: str) -> Callable[[Quickstart], None]:
    """One phase of training, from the weights of the phase before."""

    def run(job: Quickstart) -> None:
        blend = [
            {"path": str(job.path(f"data/{name}").absolute()), "weight": weight}
            for name, weight in BLENDS[phase]
        ]
        index = PHASES.index(phase)
        load = ("--train.load", job.path(f"runs/{PHASES[index - 1]}")) if index else ()
        job.tool(
            "tools/train.py",
            *("--ranks", str(job.placement.ranks)),
            *("--config", RECIPES / "model.yaml", "--config", RECIPES / f"{phase}.yaml"),
            *("--parallel.tensor", str(job.placement.tensor)),
            *("--parallel.pipeline", str(job.placement.pipeline)),
            *("--data.blend", json.dumps(blend)),
            *("--data.tokenizer", job.path("data/tokenizer.model").absolute()),
            *("--train.output", job.path(f"runs/{phase}")),
            *load,
            *precision_options(job.precision),
            *(("--train.steps", "3") if job.smoke else ()),
        )

    return run


def precision_options(precision: Precision) -> tuple[str, ...]:
    """What training is told to compute in it; FP8 is emulated where there is no GPU."""
    if precision in ("fp32", "bf16"):
        return ("--train.precision", precision)
    emulation = () if num_gpus() else ("--train.fp8.emulation", "true")
    return ("--train.precision", "bf16", "--train.fp8.recipe", precision, *emulation)


def evaluate(job: Quickstart) -> None:
    """Exact answers about held-out digits."""
    job.tool(
        "tools/evaluate.py",
        *("--checkpoint", job.path("runs/sft")),
        *("--questions", job.path("raw/eval.jsonl"), "--images", job.path("raw/images")),
        *("--output", job.path("answers.jsonl")),
    )


def export(job: Quickstart) -> None:
    """Hugging Face format, reloaded in a fresh process and compared."""
    held_out = read_jsonl(job.path("raw/eval.jsonl"))[0]
    job.tool(
        "tools/convert_checkpoint.py",
        *("export", "--checkpoint", job.path("runs/sft"), "--output", job.path("hf")),
        *("--question", QUESTION, "--image", job.path("raw/images") / held_out["images"][0]),
        *("--result", job.path("export.json")),
    )


def report(job: Quickstart) -> None:
    """One HTML page and result.json."""
    started = time.monotonic()
    answers = [answer_row(job, record) for record in read_jsonl(job.path("answers.jsonl"))]
    curves = {phase: read_run(job.path(f"runs/{phase}")) for phase in PHASES}
    proof = json.loads(job.path("export.json").read_text(encoding="utf-8"))
    packages = ("torch", "megatron-core", "transformers")
    result: dict[str, Any] = {
        "accuracy": {
            task.task: {
                "accuracy": task.accuracy(),
                "chance": task.chance,
                "correct": task.num_correct,
                "count": task.num_answers,
            }
            for task in score(answers)
        },
        "final_loss": {phase: curves[phase][-1]["loss"] for phase in PHASES},
        "export": proof,
        "seconds": job.seconds | {"report": round(time.monotonic() - started, 1)},
        "layout": str(Layout(job.placement.tensor, job.placement.pipeline, data=1)),
        "precision": job.precision,
        "versions": {"vila_mc": __version__, "python": sys.version.split()[0]}
        | {name: version(name) for name in packages},
    }
    facts = {
        "layout": result["layout"],
        "precision of training": result["precision"],
        "greatest logit difference of the export": f"{proof['max_logit_difference']:.2e}",
        "training time": clock(sum(job.seconds[f"train {phase}"] for phase in PHASES)),
        **result["versions"],
    }
    write_report(
        job.path("report.html"), "A small VILA on handwritten digits", curves, answers, facts
    )
    write_json(job.result_file, result)
    for task, figures in result["accuracy"].items():
        print(f"{task}: {figures['accuracy']:.1%} (chance {figures['chance']:.1%})")


STEPS = (
    Step("raw data", make_raw_data),
    Step("preprocess", preprocess),
    *(Step(f"train {phase}", train(phase)) for phase in PHASES),
    Step("evaluate", evaluate),
    Step("export", export),
    Step("report", report),
)


def num_gpus() -> int:
    """NVIDIA GPUs that torch can use."""
    if shutil.which("nvidia-smi") is None:
        return 0  # without the seconds that importing torch takes
    import torch

    return torch.cuda.device_count()


def answer_row(job: Quickstart, record: dict[str, Any]) -> AnswerRow:
    """A row of the report from a line of answers.jsonl."""
    return AnswerRow(
        task=record["task"],
        question=record["question"],
        images=tuple((job.path("raw/images") / name).read_bytes() for name in record["images"]),
        answer=record["answer"],
        expected=record["expected"],
        is_correct=record["is_correct"],
        chance=record["chance"],
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every record of a JSON Lines file that a step wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """From raw files to an exported, questioned model, each step by the ordinary tools."""

    output: Annotated[Path | None, Argument("OUT_DIR", is_positional=True)] = None
    """Where everything is written (default: quickstart-out in the checkout)."""
    smoke: bool = False
    """A little of everything in about a minute, to see that all steps work; nothing is learnt."""
    precision: Precision = "fp32"
    """What training computes in. delayed, current and blockwise are recipes of FP8 for the language
    model's matrix products, the rest then being bf16; without a GPU they are emulated."""


def main() -> int:
    """Parse and do the job. Raises VilaError."""
    return run_job(Job(QuickstartOptions, start), None, None)


def start(options: QuickstartOptions) -> int:
    """Do the job that the options ask for; returns the exit code."""
    output = options.output or CHECKOUT / "quickstart-out"
    return Quickstart(output, smoke=options.smoke, precision=options.precision).run()


if __name__ == "__main__":
    run_cli(main)

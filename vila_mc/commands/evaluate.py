"""``vila-mc evaluate``: questions about images, and how many answers are right."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import AskingOptions, asked_model, warn
from vila_mc.commands.command import Job, require_no_input, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import run_cli, say
from vila_mc.files import write_whole

if TYPE_CHECKING:
    from vila_mc.evaluation.questions import Answer
    from vila_mc.evaluation.scores import TaskScore


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(AskingOptions):
    """Ask a trained model questions about images and count the exact answers.

    Questions are JSON Lines with id, task and question, and images, answer and chance if there are
    any.
    """

    questions: Annotated[Path, Argument("FILE")]
    """JSON Lines of questions."""
    images: Annotated[Path, Argument("DIR")]
    """Folder of their images."""
    output: Annotated[Path, Argument("FILE")]
    """JSON Lines of answers to write."""
    follow_links: bool = False
    """Follow links in the folder of the images that lead out of it."""
    batch: PositiveInt = 32
    """Questions at a time."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print the accuracies. Raises VilaError."""
    return run_job(Job(EvaluateOptions, _evaluate), arguments, prog)


def _evaluate(options: EvaluateOptions) -> int:
    from vila_mc.evaluation.questions import ask, read_questions
    from vila_mc.evaluation.scores import score

    require_no_input(options.output, [options.questions])
    questions = read_questions(options.questions, options.images, follow_links=options.follow_links)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after
    with asked_model(options) as asked:
        coming = ask(
            asked.model,
            asked.tokenizer,
            questions,
            options.images,
            template=asked.template,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
            follow_links=options.follow_links,
        )
        answers = _collect(coming, len(questions), options.output)
    _write(options.output, answers)
    for task in score(answers):
        say(_line(task))
    if unknown := sum(answer.is_correct is None for answer in answers):
        say(f"{unknown} of {len(answers)} questions have no answer to compare with")
    if cut := sum(answer.is_cut for answer in answers):
        warn(
            f"{cut} of {len(answers)} answers had no end after --max-new-tokens "
            f"{options.max_new_tokens}; if right ones may be longer, raise it"
        )
    return 0


def _collect(coming: Iterable["Answer"], number: int, output: Path) -> list["Answer"]:
    """All answers; where Ctrl-C comes first, those so far are kept under another name.

    Raises:
        KeyboardInterrupt: it says where they are.
    """
    from tqdm import tqdm

    answers: list[Answer] = []
    try:
        for answer in tqdm(coming, total=number, unit="question", mininterval=1.0):
            answers.append(answer)
    except KeyboardInterrupt:
        if not answers:
            raise
        kept = output.with_name(f"{output.stem}.unfinished{output.suffix}")
        _write(kept, answers)
        raise KeyboardInterrupt(
            f"interrupted after {len(answers)} of {number} questions; their answers are in {kept}"
        ) from None
    return answers


def _write(output: Path, answers: Iterable["Answer"]) -> None:
    from vila_mc.evaluation.questions import answer_record

    write_whole(output, "".join(json.dumps(answer_record(answer)) + "\n" for answer in answers))


def _line(task: "TaskScore") -> str:
    chance = "" if task.chance is None else f", chance {100 * task.chance:.1f} %"
    return (
        f"{task.task}: {100 * task.accuracy():.1f} % right ({task.num_correct} of "
        f"{task.num_answers}){chance}"
    )


if __name__ == "__main__":
    run_cli(main)

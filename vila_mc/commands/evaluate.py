"""``vila-mc evaluate``: a public task or questions of one's own, and how good the answers are."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import NonNegativeInt, PositiveInt

from vila_mc.commands.asking import asked_model, warn
from vila_mc.commands.command import Job, refuse_unused, require_no_input, run_job
from vila_mc.commands.evaluating import evaluate_task, is_own
from vila_mc.commands.evaluating_loss import evaluate_loss
from vila_mc.commands.on_ranks import (
    Shared,
    SharedAskingOptions,
    is_first_rank,
    listening,
    on_ranks,
)
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.files import unfinished_path, write_whole
from vila_mc.train.sayings import Sayings

if TYPE_CHECKING:
    from vila_mc.evaluation.questions import Answer, Question
    from vila_mc.evaluation.scores import TaskScore
    from vila_mc.train.faults import StopRequest


_OF_TASKS = (
    *("judge", "limit", "prompt", "ocr", "weigh", "figures"),
    *("shots", "demonstrations", "shots_seed", "form"),
)
_FEW_TOKENS = 8
"""Of an answer to a question of one's own."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SharedAskingOptions):
    """Ask a trained model and measure its answers: a public task, or questions of your own.

    A task is read from its files as they were released, and judged as its own code does; one that
    was stopped goes on where it ended. Questions of your own are JSON Lines with id, task and
    question, and images, answer and chance if there are any; the exact answers are counted.
    """

    task: Annotated[str | None, Argument("NAME")] = None
    """vqav2, okvqa, textvqa, vizwiz, gqa, scienceqa, mmbench, seed, pope, mme, coco, flickr30k,
    mmvet, mmlu, bbh or drop; vqav2_test, vizwiz_test or mmbench_test, whose answers are judged
    elsewhere; or a file of your own (.jsonl, docs/evaluation.md)."""
    data: Annotated[Path | None, Argument("DIR")] = None
    """Folder of the task's files (docs/evaluation.md)."""
    judge: Annotated[str | None, Argument("NAME")] = None
    """Public code to judge a task as, where two differ: official, llava or lmms-eval. Of a file of
    your own: exact, words, anls, vqa or cider."""
    limit: PositiveInt | None = None
    """First items of a task that are asked (default: all)."""
    shots: NonNegativeInt | None = None
    """Demonstrations from the training split in front of each question (default: none)."""
    demonstrations: Literal["random", "fixed", "similar"] | None = None
    """Drawn for each question (the default), once for all, or most similar in words."""
    shots_seed: int | None = None
    """What is drawn for --shots follows from it (default: 0)."""
    form: Literal["chat", "flamingo", "text", "interleaved"] | None = None
    """How a prompt is written: turns in the chat template (the default), as open_flamingo does, or,
    of a file of your own and of text tasks, a text to go on with; of such a file also in one
    paragraph, as documents of pre-training are."""
    prompt: Annotated[str | None, Argument("NAME")] = None
    """Public code to ask a task as, where two differ: llava (the default) or lmms-eval."""
    ocr: bool = False
    """Name the OCR tokens of an image behind the question, as LLaVA does (textvqa)."""
    weigh: Literal["letters", "texts", "texts_per_character"] | None = None
    """Of choices in a file of your own the likeliest letter (the default), text, or text per
    character is the answer."""
    questions: Annotated[Path | None, Argument("FILE")] = None
    """JSON Lines of questions of your own, of which exact answers are counted."""
    images: Annotated[Path | None, Argument("DIR")] = None
    """Folder of the images of your own questions, or task (then by default that of its file)."""
    loss: bool = False
    """Measure the loss instead, as the run of a checkpoint does on what nothing learns from."""
    datasets: Annotated[tuple[Path, ...], Argument("PREFIX")] = ()
    """Indexed datasets to measure it on (default: the run's data.validation and data.held_out)."""
    output: Annotated[Path, Argument("FILE")]
    """JSON Lines of answers to write; with --loss, JSON of the figures."""
    figures: Annotated[Path | None, Argument("FILE")] = None
    """JSON of what a task's answers are measured by (default: they are only printed)."""
    max_new_tokens: PositiveInt | None = None
    """Longest answer (default: what the task asks for; 8 for questions of your own)."""
    follow_links: bool = False
    """Follow links in the folder of the images that lead out of it."""
    batch: PositiveInt | None = None
    """Questions at a time (default: as many as fit in memory, at most 32)."""
    tensor: Annotated[PositiveInt | None, Argument("N")] = None
    """Of the ranks, those that hold one copy of the model together, by tensor parallelism (default:
    1); each copy answers a share of the questions."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print the figures. Raises VilaError."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_job(Job(EvaluateOptions, partial(_evaluate, given)), given, prog)


def _evaluate(given: Sequence[str], options: EvaluateOptions) -> int:
    if options.loss:
        return evaluate_loss(options)
    refuse_unused(options, ["datasets"], "only --loss reads datasets")
    work = Shared("vila_mc.commands.evaluate", given, options.tensor or 1, _sayings(options))

    def shared(do: Callable[[int, "StopRequest | None"], int]) -> int:
        return on_ranks(options, work, do)

    name, data = options.task, options.data
    if name is not None and is_own(name):
        data = Path(name).parent if data is None else None
    if name is not None and data is not None and options.questions is None:
        return shared(lambda tensor, stop: evaluate_task(options, name, data, tensor, stop))
    if options.questions is not None and name is None:
        refuse_unused(options, _OF_TASKS, "--questions counts exact answers alone; --task has it")
    if options.questions is None or options.images is None or name is not None:
        raise ConfigError(
            "give either a public task (--task and --data, and if you like --judge, --limit or "
            "--shots), a task of your own (--task FILE.jsonl), questions of which exact answers "
            "are counted (--questions and --images alone), or --loss."
        )
    file, images = options.questions, options.images
    return shared(lambda tensor, stop: _evaluate_questions(options, file, images, tensor, stop))


def _sayings(options: EvaluateOptions) -> Sayings:
    goes_on = ", and the same command goes on" if options.task else ""
    return Sayings(
        stopping="every rank finishes its batch",
        stopped="",  # the first rank says where the answers are
        before_work="stopped before the first batch; nothing was lost",
        kept=f"the answers so far are in {unfinished_path(options.output)}{goes_on}",
    )


def _evaluate_questions(
    options: EvaluateOptions, file: Path, images: Path, tensor: int, stop: "StopRequest | None"
) -> int:
    from vila_mc.evaluation.questions import ask, read_questions, sharing_of
    from vila_mc.evaluation.room import Room
    from vila_mc.evaluation.scores import score
    from vila_mc.evaluation.sharing import answered_together, longest

    require_no_input(options.output, [file])
    tokens = options.max_new_tokens or _FEW_TOKENS
    choice = options.choice()
    questions = read_questions(file, images, follow_links=options.follow_links)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after
    room = Room(partial(longest, questions, tokens=tokens), options.batch)
    with asked_model(options, tensor, room) as asked:
        at_a_time = room.rows or 1

        def ask_batch(batch: Sequence["Question"]) -> Iterable["Answer"]:
            return ask(
                asked.model,
                asked.tokenizer,
                batch,
                images,
                template=asked.template,
                max_new_tokens=tokens,
                batch=at_a_time,
                follow_links=options.follow_links,
                choice=choice,
            )

        how = sharing_of(asked.model, at_a_time)
        coming = answered_together(asked.model, questions, ask_batch, how, listening(stop))
        said = _collect(coming, len(questions), options.output)
    if not is_first_rank():
        return 0
    by_question = {answer.question: answer for answer in said}
    answers = [by_question[question] for question in questions]
    _write(options.output, answers)
    for task in score(answers):
        say(_line(task))
    if unknown := sum(answer.is_correct is None for answer in answers):
        say(f"{unknown} of {len(answers)} questions have no answer to compare with")
    if cut := sum(answer.is_cut for answer in answers):
        warn(
            f"{cut} of {len(answers)} answers had no end after --max-new-tokens "
            f"{tokens}; if right ones may be longer, raise it"
        )
    return 0


def _collect(coming: Iterable["Answer"], number: int, output: Path) -> list["Answer"]:
    """All answers; where Ctrl-C or a mistake comes first, those so far are kept under another name.

    Raises:
        KeyboardInterrupt: it says where they are.
    """
    from tqdm import tqdm

    kept = unfinished_path(output)

    answers: list[Answer] = []
    try:
        for answer in tqdm(coming, total=number, unit="question", mininterval=1.0):
            answers.append(answer)
    except BaseException as error:
        if answers and is_first_rank():
            _write(kept, answers)
        if answers and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted after {len(answers)} of {number} questions; their answers are in "
                f"{kept}"
            ) from None
        raise
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

"""``vila-mc evaluate``: questions about images, and how many answers are right."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt

from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, say
from vila_mc.files import write_whole


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Ask a trained model questions about images and count the exact answers.

    Questions are JSON Lines with id, task, images, question, answer and chance.
    """

    checkpoint: Annotated[Path, Argument("DIR")]
    """A step-* directory, or a run, of which the newest checkpoint is taken."""
    questions: Annotated[Path, Argument("FILE")]
    """JSON Lines of questions."""
    images: Annotated[Path, Argument("DIR")]
    """Folder of their images."""
    output: Annotated[Path, Argument("FILE")]
    """JSON Lines of answers to write."""
    tokenizer: Annotated[Path | None, Argument("MODEL")] = None
    """Default: the one it was trained with."""
    template: Annotated[str | None, Argument("NAME")] = None
    """plain, vicuna_v1, llama_2, llama_3, chatml, tokenizer (its own), or a YAML file. Default: the
    one it was trained with, else vicuna_v1."""
    follow_links: bool = False
    """Follow links in the folder of the images that lead out of it."""
    max_new_tokens: PositiveInt = 8
    """Longest answer."""
    batch: PositiveInt = 32
    """Questions at a time."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print the accuracies. Raises VilaError."""
    return run_job(Job(EvaluateOptions, _evaluate), arguments, prog)


def _evaluate(options: EvaluateOptions) -> int:
    from tqdm import tqdm

    from vila_mc.checkpoint.trained_tokenizer import another_tokenizer
    from vila_mc.checkpoint.whole import whole_model
    from vila_mc.convert.chat_template import template_to_ask_with
    from vila_mc.data.tokenizers.tokenizer import Tokenizer
    from vila_mc.evaluation.questions import answer_record, ask, read_questions
    from vila_mc.evaluation.scores import score

    questions = read_questions(options.questions, options.images, follow_links=options.follow_links)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after
    with whole_model(options.checkpoint) as (model, manifest):
        tokenizer_path = options.tokenizer or manifest.config.data.tokenizer
        if tokenizer_path is None:
            raise ConfigError("the checkpoint names no tokenizer. Give one.", option="tokenizer")
        tokenizer = Tokenizer(tokenizer_path)
        _warn(another_tokenizer(manifest, tokenizer))
        template, note = template_to_ask_with(options.template, tokenizer, manifest.datasets)
        _warn(note)
        asked = ask(
            model,
            tokenizer,
            questions,
            options.images,
            template=template,
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
            follow_links=options.follow_links,
        )
        answers = list(tqdm(asked, total=len(questions), unit="question", mininterval=1.0))
    lines = [json.dumps(answer_record(answer)) + "\n" for answer in answers]
    write_whole(options.output, "".join(lines))
    for task in score(answers):
        say(
            f"{task.task}: {100 * task.accuracy():.1f} % right ({task.num_correct} of "
            f"{task.num_answers}), chance {100 * task.chance:.1f} %"
        )
    if cut := sum(answer.is_cut for answer in answers):
        _warn(
            f"{cut} of {len(answers)} answers had no end after --max-new-tokens "
            f"{options.max_new_tokens}; if right ones may be longer, raise it"
        )
    return 0


def _warn(what: str | None) -> None:
    if what:
        say(f"warning: {what}", to_stderr=True)

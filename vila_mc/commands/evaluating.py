"""``vila-mc evaluate --task``: a public task, measured as its own code does."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vila_mc.commands.asking import asked_model, warn
from vila_mc.errors import say
from vila_mc.table import aligned

if TYPE_CHECKING:
    from vila_mc.commands.evaluate import EvaluateOptions
    from vila_mc.evaluation.tasks.asking import Answered
    from vila_mc.evaluation.tasks.kept_answers import KeptAnswers
    from vila_mc.evaluation.tasks.task import Figure, Item

_AT_A_TIME = 8
"""Batches after which answers are on disk."""


def evaluate_task(options: "EvaluateOptions", name: str, data: Path) -> int:
    """Ask, keep, judge, print. Raises VilaError."""
    from vila_mc.evaluation.tasks.kept_answers import KeptAnswers, write_answers
    from vila_mc.evaluation.tasks.registry import find_judge, find_task

    task = find_task(name)
    judge = find_judge(task, options.judge)
    every = task.read(data)
    if task.released and len(every) not in task.released:
        released = " or ".join(f"{count:,}" for count in task.released)
        warn(f"{data} holds {len(every):,} items of {name}, of which {released} were released")
    items = every[: options.limit]
    tokens = options.max_new_tokens or task.max_new_tokens
    options.output.parent.mkdir(parents=True, exist_ok=True)
    choice = options.choice()
    asked = {
        "checkpoint": str(_identity(options.checkpoint)),
        "template": options.template,
        "tokenizer": str(options.tokenizer),
        "task": name,
        "max_new_tokens": tokens,
        "choice": asdict(choice),
    }
    kept = KeptAnswers(options.output, asked)
    missing = [item for item in items if item.id not in kept.answers]
    if len(missing) < len(items):
        say(f"{len(items) - len(missing)} of {len(items)} answers are in {kept.path}")
    cut = sum(is_cut for _, is_cut in kept.answers.values())
    if missing:
        from vila_mc.evaluation.tasks.asking import ask_items

        with asked_model(options) as whom:
            coming = ask_items(
                whom, task, missing, batch=options.batch, max_new_tokens=tokens, choice=choice
            )
            cut += _collect(coming, missing, kept, _AT_A_TIME * options.batch)
    answers = [kept.answers[item.id][0] for item in items]
    write_answers(options.output, options.checkpoint.name, items, answers)
    kept.remove()
    if judge is None:
        say(f"{name}: {len(items)} answers are in {options.output}, to be judged elsewhere")
    else:
        _say_figures(name, judge[0], judge[1](items, answers))
    if cut:
        warn(f"{cut} of {len(items)} answers had no end after {tokens} tokens (--max-new-tokens)")
    return 0


def _collect(
    coming: Iterable["Answered"], items: Sequence["Item"], kept: "KeptAnswers", at_a_time: int
) -> int:
    """Keep answers as they come. Returns how many are cut.

    Raises:
        KeyboardInterrupt: it says where those so far are.
    """
    from tqdm import tqdm

    waiting: list[Answered] = []
    cut = 0

    def keep() -> None:
        kept.keep(waiting)
        kept.answers.update({one.item.id: (one.answer, one.is_cut) for one in waiting})
        waiting.clear()

    try:
        for answered in tqdm(coming, total=len(items), unit="question", mininterval=1.0):
            waiting.append(answered)
            cut += answered.is_cut
            if len(waiting) == at_a_time:
                keep()
        keep()
    except KeyboardInterrupt:
        keep()
        raise KeyboardInterrupt(
            f"interrupted after {len(kept.answers)} answers, which are in {kept.path}; the same "
            "command goes on"
        ) from None
    return cut


def _say_figures(task: str, judge: str, figures: Sequence["Figure"]) -> None:
    say(f"{task}, judged as {judge} does:")
    rows = [
        (
            figure.name,
            f"{figure.value:.2f}",
            "" if figure.interval is None else "{:.2f} to {:.2f}".format(*figure.interval),
            f"of {figure.count}",
        )
        for figure in figures
    ]
    for line in aligned(rows):
        say(line)


def _identity(checkpoint: Path) -> Path:
    """What is asked, though a run may have a newer checkpoint by the next time."""
    from vila_mc.checkpoint.manifest import resolve_checkpoint
    from vila_mc.convert.open_model import is_published

    return (checkpoint if is_published(checkpoint) else resolve_checkpoint(checkpoint)).resolve()

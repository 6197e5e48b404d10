"""``vila-mc evaluate --task``: a public task, measured as its own code does."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vila_mc.commands.asking import asked_model, warn
from vila_mc.commands.command import refuse_unused, require_no_input
from vila_mc.commands.on_ranks import is_first_rank, listening
from vila_mc.errors import ConfigError, say
from vila_mc.files import write_json
from vila_mc.table import aligned

if TYPE_CHECKING:
    from vila_mc.commands.evaluate import EvaluateOptions
    from vila_mc.evaluation.choice import Choice
    from vila_mc.evaluation.tasks.asking import Answered
    from vila_mc.evaluation.tasks.demonstrations import Shots
    from vila_mc.evaluation.tasks.kept_answers import Kept, KeptAnswers
    from vila_mc.evaluation.tasks.task import Figure, Item, Task
    from vila_mc.train.faults import StopRequest

_AT_A_TIME = 8
"""Batches after which answers are on disk."""


def is_own(task: str) -> bool:
    """Whether what is given as a task is a file of one's own."""
    return task.endswith(".jsonl")


def evaluate_task(
    options: "EvaluateOptions", name: str, data: Path, tensor: int, stop: "StopRequest | None"
) -> int:
    """Ask, keep, judge, print; of several ranks the first alone writes. Raises VilaError."""
    from vila_mc.evaluation.tasks.kept_answers import KeptAnswers, write_answers
    from vila_mc.evaluation.tasks.registry import find_judge

    task = _task(options, name)
    judge = find_judge(task, options.judge)
    if options.figures is not None:
        _require_figures(options.figures, options.output, judge is not None, name)
    shots = _shots(options, task)
    items = _first(_read(task, data), options.limit)
    tokens = options.max_new_tokens or task.max_new_tokens
    options.output.parent.mkdir(parents=True, exist_ok=True)
    choice = options.choice()
    asked = _follow_from(options, name, tokens, choice, shots)
    kept = KeptAnswers(options.output, asked, is_writer=is_first_rank())
    missing = [item for item in items if item.id not in kept.answers]
    if len(missing) < len(items):
        say(f"{len(items) - len(missing)} of {len(items)} answers are in {kept.path}")
    if missing or stop is not None:  # ranks wait for each other: one may have seen the end before
        from vila_mc.evaluation.room import Room
        from vila_mc.evaluation.sharing import answered_together, longest
        from vila_mc.evaluation.tasks.asking import ask_items, sharing_of
        from vila_mc.evaluation.tasks.demonstrations import Demonstrations

        pool = task.shown(data) if task.shown and shots.needed else []
        prompts = shots.needed + 1
        room = Room(partial(longest, missing, tokens=tokens, prompts=prompts), options.batch)
        with asked_model(options, tensor, room) as whom:
            batch = room.rows or 1
            ask = partial(
                ask_items,
                whom,
                task,
                batch=batch,
                max_new_tokens=tokens,
                choice=choice,
                demonstrations=Demonstrations(pool, shots),
            )
            how = sharing_of(whom, batch)
            coming = answered_together(whom.model, missing, ask, how, listening(stop))
            _collect(coming, missing, kept, _AT_A_TIME * batch)
    if not is_first_rank():
        return 0
    answers = [kept.answers[item.id] for item in items]
    write_answers(options.output, options.checkpoint.name, items, answers)
    kept.remove()
    if judge is None:
        say(f"{name}: {len(items)} answers are in {options.output}, to be judged elsewhere")
    else:
        figures = judge[1](items, [one["answer"] for one in answers])
        _say_figures(task.name + _how(task, options.ocr, shots), judge[0], figures)
        if options.figures is not None:
            _write_figures(options.figures, task, judge[0], shots, figures)
    _warn_of_what_is_missing(answers, shots, tokens)
    return 0


def _read(task: "Task", data: Path) -> "Sequence[Item]":
    """All that a task asks; says so if these are not as many as were released. Raises VilaError."""
    items = task.read(data)
    if task.released and len(items) not in task.released:
        released = " or ".join(f"{count:,}" for count in task.released)
        warn(f"{data} holds {len(items):,} items of {task.name}, of which {released} were released")
    return items


def _first(items: "Sequence[Item]", limit: int | None) -> "Sequence[Item]":
    """As many as are asked. Raises ConfigError: some count together with one that is not."""

    def is_parted(count: int) -> bool:
        if count >= len(items):
            return False
        pair = items[count - 1].pair
        return pair != "" and pair == items[count].pair

    if limit is not None and is_parted(limit):
        whole = next(count for count in range(limit, len(items) + 1) if not is_parted(count))
        raise ConfigError(
            f"limit is {limit}, and the first {limit} questions end amid some that count together "
            f"({items[limit].pair}). Give {whole}.",
            option="limit",
        )
    return items[:limit]


def _require_figures(figures: Path, output: Path, is_judged: bool, name: str) -> None:
    """Raises ConfigError: there will be none, or they would stand where the answers do."""
    if not is_judged:
        raise ConfigError(f"{name} is judged elsewhere, so it has no figures.", option="figures")
    if figures.absolute() == output.absolute():
        raise ConfigError("figures is output. Name another file.", option="figures")
    figures.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after


def _follow_from(
    options: "EvaluateOptions", name: str, tokens: int, choice: "Choice", shots: "Shots"
) -> dict[str, Any]:
    """What answers follow from: those of anything else are not gone on with."""
    return {
        "checkpoint": str(_identity(options.checkpoint)),
        "template": options.template,
        "tokenizer": str(options.tokenizer),
        "precision": options.precision,
        "task": _content(name) if is_own(name) else name,
        "max_new_tokens": tokens,
        "choice": asdict(choice),
        "shots": asdict(shots),
        "prompt": options.prompt,
        "ocr": options.ocr,
        "weigh": options.weigh,
    }


def _task(options: "EvaluateOptions", name: str) -> "Task":
    """A public task, or the file of one's own. Raises VilaError."""
    from vila_mc.evaluation.tasks.own import OwnTask, own_task
    from vila_mc.evaluation.tasks.registry import find_prompt, find_task

    if is_own(name):
        refuse_unused(options, ["ocr", "prompt"], f"{name} is no public task")
        file = Path(name)
        require_no_input(options.output, [file])
        return own_task(
            OwnTask(
                file,
                options.images or file.parent,
                options.follow_links,
                options.form or "chat",
                options.weigh or "letters",
            )
        )
    refuse_unused(options, ["weigh", "images", "follow_links"], f"{name} is a public task")
    task = find_prompt(find_task(name), options.prompt)
    if not options.ocr:
        return task
    if task.with_ocr is None:
        raise ConfigError(f"{name} has no OCR tokens; textvqa has.", option="ocr")
    return task.with_ocr


def _shots(options: "EvaluateOptions", task: "Task") -> "Shots":
    """Raises ConfigError: the task has none such."""
    from vila_mc.evaluation.tasks.demonstrations import Shots
    from vila_mc.evaluation.tasks.registry import TASKS
    from vila_mc.evaluation.tasks.task import TEXT_FORMS

    form = options.form or ("text" if task.is_text else "chat")
    is_public = options.task in TASKS
    if (form in TEXT_FORMS) != task.is_text or (form == "interleaved" and is_public):
        raise ConfigError(
            f"{task.name} is asked as text alone."
            if task.is_text
            else f"{task.name} is asked in the form chat or flamingo, not as {form}.",
            option="form",
        )
    drawn = options.demonstrations or "random"
    shots = Shots(options.shots or 0, drawn, options.shots_seed or 0, form)
    if not shots.needed:
        names = ["demonstrations", "shots_seed"]
        refuse_unused(options, names, "no demonstrations are shown (--shots)")
    elif task.shown is None:
        raise ConfigError(
            f"{task.name} has no training split to take demonstrations from; there is one of "
            f"{', '.join(known for known in TASKS if TASKS[known].shown)}, and of a file with "
            "lines of split train.",
            option="shots",
        )
    return shots


def _how(task: "Task", has_ocr: bool, shots: "Shots") -> str:
    """What to say of the prompts."""
    how = f", asked as {task.asked_as} does" if task.asked_as else ""
    how += ", with OCR tokens" if has_ocr else ""
    if not shots.needed:
        return how
    return f"{how}, {shots.count}-shot, {shots.drawn} (seed {shots.seed}), as {shots.form}"


def _warn_of_what_is_missing(answers: Sequence["Kept"], shots: "Shots", tokens: int) -> None:
    if cut := sum(one["is_cut"] for one in answers):
        warn(f"{cut} of {len(answers)} answers had no end after {tokens} tokens (--max-new-tokens)")
    numbers = [len(one["demonstrations"]) for one in answers]
    if few := sum(number < shots.needed for number in numbers):
        warn(
            f"{few} of {len(answers)} prompts hold fewer than {shots.needed} demonstrations, "
            f"{min(numbers)} at the fewest: no more fit model.language.max_positions"
        )


def _collect(
    coming: Iterable["Answered"], items: Sequence["Item"], kept: "KeptAnswers", at_a_time: int
) -> None:
    """Keep answers as they come.

    Whatever ends them, those so far are kept.

    Raises:
        KeyboardInterrupt: it says where those so far are.
    """
    from tqdm import tqdm

    waiting: list[Answered] = []

    def keep() -> None:
        kept.keep(waiting)
        waiting.clear()

    try:
        for answered in tqdm(coming, total=len(items), unit="question", mininterval=1.0):
            waiting.append(answered)
            if len(waiting) == at_a_time:
                keep()
    except KeyboardInterrupt:
        keep()
        raise KeyboardInterrupt(
            f"interrupted after {len(kept.answers)} answers, which are in {kept.path}; the same "
            "command goes on"
        ) from None
    finally:
        keep()


def _write_figures(
    file: Path, task: "Task", judge: str, shots: "Shots", figures: Sequence["Figure"]
) -> None:
    """What is said, as JSON."""
    content = {
        "task": task.name,
        "prompt": task.asked_as,
        "judge": judge,
        "shots": asdict(shots),
        "figures": [asdict(one) for one in figures],
    }
    write_json(file, content)


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


def _content(file: str) -> str:
    """What answers to a task of one's own follow from, though its file may change meanwhile."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _identity(checkpoint: Path) -> Path:
    """What is asked, though a run may have a newer checkpoint by the next time."""
    from vila_mc.checkpoint.directories import resolve_checkpoint
    from vila_mc.convert.open_model import is_published

    return (checkpoint if is_published(checkpoint) else resolve_checkpoint(checkpoint)).resolve()

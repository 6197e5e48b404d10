"""The public tasks by name."""

from vila_mc.errors import ConfigError
from vila_mc.evaluation.tasks import choice, sentences, short_answers, text, yes_or_no
from vila_mc.evaluation.tasks.task import Judge, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *short_answers.TASKS,
        *choice.TASKS,
        *yes_or_no.TASKS,
        *sentences.TASKS,
        *text.TASKS,
    )
}


def find_task(name: str) -> Task:
    """Raises ConfigError: there is none of this name."""
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(f"{name} is no task. Give one of {', '.join(TASKS)}.") from None


def find_prompt(task: Task, name: str | None) -> Task:
    """The task as a public code asks it. Raises ConfigError: there is no prompt of this name."""
    if name is None:
        return task
    if name not in task.prompts:
        known = " and ".join(task.prompts)
        raise ConfigError(
            f"{task.name} is not asked as {name} does. "
            + (f"There is {known}." if known else "There is one prompt alone."),
            option="prompt",
        )
    return task.prompts[name]


def find_judge(task: Task, name: str | None) -> tuple[str, Judge] | None:
    """A judge and its name; the task's first if none is named.

    Returns:
        None where the task's answers are judged elsewhere.

    Raises:
        ConfigError: the task has no judge of this name.
    """
    if name is None:
        return next(iter(task.judges.items()), None)
    if name not in task.judges:
        known = ", ".join(task.judges) or "none: its answers are judged elsewhere"
        raise ConfigError(f"{task.name} is not judged as {name} does. There is {known}.")
    return name, task.judges[name]

"""``vila-mc report``: what training runs did, on the terminal and as a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vila_mc.commands.command import Job, require_no_input, require_page, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.observe.metrics import METRICS_NAME

MOST_RUNS = 8
"""More curves in one panel are not told apart."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Sum up training runs on the terminal, and draw their curves side by side in one HTML page.

    A run may be done, stopped, dead or still going on.
    """

    run: Annotated[tuple[Path, ...], Argument("RUN", is_positional=True)]
    """The train.output of a run, or its metrics.jsonl; one or several."""
    output: Annotated[Path | None, Argument("FILE")] = None
    """The page to write (default: report.html in the folder of the first run's metrics)."""
    answers: Annotated[tuple[Path, ...], Argument("FILE")] = ()
    """What evaluate wrote, whose accuracies are to stand on the page."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, read, print, write. Raises VilaError."""
    return run_job(Job(ReportOptions, _report), arguments, prog)


def _report(options: ReportOptions) -> int:
    from vila_mc.evaluation.report import write_runs
    from vila_mc.evaluation.run_on_page import run_on_page
    from vila_mc.evaluation.saved_answers import read_scores

    if len(options.run) > MOST_RUNS:
        raise ConfigError(f"{len(options.run)} runs are given; a page has room for {MOST_RUNS}.")
    first = options.run[0]
    folder = first if first.is_dir() else first.parent
    output = options.output or folder / "report.html"
    require_page(output)
    require_no_input(output, [*options.run, *options.answers])
    scores = {str(file): read_scores(file) for file in options.answers}
    names = _names(options.run)
    runs = []
    for run, name in zip(options.run, names, strict=True):
        shown = run_on_page(run, name)
        if len(names) > 1:
            say(f"{name}:")
        _say_facts(shown.facts)
        runs.append(shown)
    title = f"{runs[0].phase}: {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    write_runs(output, title, runs, scores)
    say(f"wrote {output}")
    return 0


def _names(runs: Sequence[Path]) -> list[str]:
    """What to call each run: its folder, with as many of those above as tell them apart."""
    paths = [run.resolve() for run in runs]
    parts = [(path.parent if path.name == METRICS_NAME else path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    twice = Counter(parts).most_common(1)[0][0]
    raise ConfigError(f"{Path(*twice)} is given more than once. Give each run once.")


def _say_facts(facts: Mapping[str, str]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:{width}}  {value}")


if __name__ == "__main__":
    run_cli(main)

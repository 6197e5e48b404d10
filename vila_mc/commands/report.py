"""``vila-mc report``: what training runs did, on the terminal and as a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vila_mc.commands.command import Job, require_no_input, require_page, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import CheckpointError, ConfigError, run_cli, say
from vila_mc.observe.metrics import METRICS_NAME

if TYPE_CHECKING:
    from vila_mc.config.data import DataConfig
    from vila_mc.evaluation.report import RunOnPage

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
    from vila_mc.evaluation.saved_answers import read_scores

    if len(options.run) > MOST_RUNS:
        raise ConfigError(f"{len(options.run)} runs are given; a page has room for {MOST_RUNS}.")
    folders = [run if run.is_dir() else run.parent for run in options.run]
    output = options.output or folders[0] / "report.html"
    require_page(output)
    require_no_input(output, [*options.run, *options.answers])
    scores = {str(file): read_scores(file) for file in options.answers}
    names = _names(options.run)
    runs = []
    for run, folder, name in zip(options.run, folders, names, strict=True):
        phase, shown = _read(run, folder, name)
        if len(names) > 1:
            say(f"{name}:")
        _say_facts(shown.facts)
        runs.append(shown)
    title = f"{phase}: {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
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


def _read(run: Path, folder: Path, name: str) -> tuple[str, "RunOnPage"]:
    """The phase of a run, and what the page shows of it."""
    from vila_mc.evaluation.curves import named_datasets
    from vila_mc.evaluation.report import RunOnPage
    from vila_mc.observe.run_reader import read_record
    from vila_mc.observe.run_summary import summary

    record = read_record(run)
    records = record.records()
    phase, of_checkpoint, datasets = _of_newest_checkpoint(folder)
    facts = summary(records) | of_checkpoint
    if record.num_events:
        facts["alarms"] = ", ".join(
            f"{count:,} {kind}" for kind, count in sorted(record.num_events.items())
        )
    if record.passed_over:
        facts["damaged"] = f"{record.passed_over:,} of the lines of its metrics are no record"
    return phase, RunOnPage(
        name=name,
        records=named_datasets(records, datasets),
        facts=facts,
        events=record.events(),
        num_events=record.num_events,
    )


def _say_facts(facts: Mapping[str, str]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:{width}}  {value}")


def _of_newest_checkpoint(folder: Path) -> tuple[str, dict[str, str], list[str]]:
    """The phase of a run, what else its newest checkpoint says, and names of what it validates on.

    A run may have no checkpoint yet.
    """
    from vila_mc.checkpoint.manifest import Manifest, newest_checkpoint

    try:
        newest = newest_checkpoint(folder)
        if newest is None:
            return "training", {}, []
        manifest = Manifest.read(newest)
    except CheckpointError as error:
        return "training", {"checkpoint": str(error)}, []
    train = manifest.config.train
    facts = {"checkpoint": f"{newest.name} of {train.steps:,} steps"}
    if manifest.layout is not None:
        facts["layout"] = f"{manifest.layout}, micro-batch {train.rows_of_a_pass()}"
    facts["computed in"] = manifest.computed_in()
    facts["written by"] = manifest.written_by()
    return train.phase, facts, _datasets(manifest.config.data)


def _datasets(data: "DataConfig") -> list[str]:
    """Names of the datasets that a run validates on, each once."""
    names = [entry.path.name for entry in data.validation]
    return [name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names)]


if __name__ == "__main__":
    run_cli(main)

"""``vila-mc report``: what a training run did, on the terminal and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vila_mc.commands.command import Job, require_page, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import CheckpointError, run_cli, say


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Sum up a training run on the terminal, and draw its curves in one HTML page.

    The run may be done, stopped, dead or still going on.
    """

    run: Annotated[Path, Argument("RUN", is_positional=True)]
    """The train.output of a run, or its metrics.jsonl."""
    output: Annotated[Path | None, Argument("FILE")] = None
    """The page to write (default: report.html in the folder of the metrics)."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, read, print, write. Raises VilaError."""
    return run_job(Job(ReportOptions, _report), arguments, prog)


def _report(options: ReportOptions) -> int:
    from vila_mc.evaluation.report import write_report
    from vila_mc.observe.run_summary import read_run, summary

    records = read_run(options.run)
    folder = options.run if options.run.is_dir() else options.run.parent
    output = options.output or folder / "report.html"
    require_page(output)
    phase, of_checkpoint = _of_newest_checkpoint(folder)
    facts = summary(records) | of_checkpoint
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:{width}}  {value}")
    title = f"{phase}: {folder.resolve().name}"
    write_report(output, title, {phase: records}, [], facts)
    say(f"wrote {output}")
    return 0


def _of_newest_checkpoint(folder: Path) -> tuple[str, dict[str, str]]:
    """The phase of a run, and what else its newest checkpoint says; a run may have none yet."""
    from vila_mc.checkpoint.manifest import Manifest, newest_checkpoint

    try:
        newest = newest_checkpoint(folder)
        if newest is None:
            return "training", {}
        manifest = Manifest.read(newest)
    except CheckpointError as error:
        return "training", {"checkpoint": str(error)}
    train = manifest.config.train
    facts = {"checkpoint": f"{newest.name} of {train.steps:,} steps"}
    if manifest.layout is not None:
        facts["layout"] = f"{manifest.layout}, micro-batch {train.rows_of_a_pass()}"
    facts["computed in"] = manifest.computed_in()
    facts["written by"] = manifest.written_by()
    return train.phase, facts


if __name__ == "__main__":
    run_cli(main)

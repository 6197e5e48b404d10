"""``vila-mc preprocess``: raw corpora to an indexed dataset. See docs/data_format.md."""

from collections.abc import Sequence
from functools import partial

from vila_mc.commands.command import Job, run_one_of
from vila_mc.config.values import read_path
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.kinds import KINDS
from vila_mc.data.sources.options import RawOptions
from vila_mc.errors import run_cli, say


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print the closing table. Raises VilaError."""
    return run_one_of(
        {name: Job(options, partial(_preprocess, name)) for name, options in KINDS.items()},
        "kind",
        arguments,
        prog,
        summary="Turn raw corpora into an indexed dataset for training.",
    )


def _preprocess(kind: str, options: RawOptions) -> int:
    made = preprocess(
        options.source(),
        read_path(options.output, "--output"),
        options.set_kind(),
        options.tokenizer,
        facts={"kind": kind, **options.facts()},
        workers=options.workers,
        limit=RejectionLimit.parse(options.max_rejected),
        images=options.image_policy(),
        resume=options.resume,
    )
    say("\n".join(made.lines()))
    if warning := made.warning():
        say(f"warning: {warning}", to_stderr=True)
    return 0


if __name__ == "__main__":
    run_cli(main)

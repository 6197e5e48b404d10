"""``vila-mc inspect``: what an indexed dataset holds. See docs/data_format.md."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vila_mc.commands.command import Job, require_page, run_one_of
from vila_mc.config.options import Argument
from vila_mc.errors import DataError, run_cli, say
from vila_mc.files import write_whole

if TYPE_CHECKING:
    from vila_mc.config.model import ModelConfig

_SHOWN_FAULTS = 20


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """A dataset."""

    prefix: Annotated[Path, Argument("PREFIX", is_positional=True)]
    """Prefix of the dataset."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DatasetOptions):
    """A dataset, and the model that will read it."""

    config: Annotated[tuple[Path, ...], Argument("FILE")] = ()
    """Recipes of the model, which say how many visual tokens an image takes, or how it is cut
    (default: the model that training has by default)."""


@dataclass(frozen=True, kw_only=True)
class SummaryOptions(ModelOptions):
    """Counts, and histograms of lengths and images as PNG."""

    png: Annotated[Path | None, Argument("FILE")] = None
    """Where to draw the histograms (default: nowhere)."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions(ModelOptions):
    """One sample as an HTML page: images in place, tokens, which are trained on."""

    sample: Annotated[int, Argument("N", is_positional=True)]
    """Which sample, from 0."""
    output: Annotated[Path, Argument("HTML")]
    """Page to write."""
    tokenizer: Annotated[Path | None, Argument("MODEL")] = None
    """Tokenizer of the dataset (default: show ids alone)."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(DatasetOptions):
    """Checksums agree; every image decodes; every token lies in the vocabulary."""

    workers: int = 1
    """Processes."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(DatasetOptions):
    """Back to JSON Lines and image files."""

    output: Annotated[Path, Argument("DIR")]
    """Folder to make."""
    tokenizer: Annotated[Path, Argument("MODEL")]
    """Tokenizer of the dataset."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and call. Raises VilaError."""
    jobs: dict[str, Job[Any]] = {
        "summary": Job(SummaryOptions, _summary),
        "show": Job(ShowOptions, partial(_show, prog or _script())),
        "verify": Job(VerifyOptions, _verify),
        "export": Job(ExportOptions, _export),
    }
    return run_one_of(jobs, "command", arguments, prog, summary="Look into an indexed dataset.")


def _summary(options: SummaryOptions) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.summary import plot_summary, summary_lines
    from vila_mc.data.tiles import Tiling

    model, named = _model(options.config)
    reader = IndexedReader(options.prefix, Tiling.of(model.vision))
    say("\n".join(summary_lines(reader, model.tile_positions(), named)))
    if options.png is not None:
        plot_summary(reader, options.png)
        say(f"histograms {options.png}")
    return 0


def _show(prog: str, options: ShowOptions) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.page import sample_page
    from vila_mc.data.tiles import Tiling
    from vila_mc.data.tokenizers.tokenizer import Tokenizer

    require_page(options.output)
    tokenizer = None if options.tokenizer is None else Tokenizer(options.tokenizer)
    model, named = _model(options.config)
    reader = IndexedReader(options.prefix, Tiling.of(model.vision))
    others = {"previous": options.sample - 1, "next": options.sample + 1}
    commands = [
        (what, _command(prog, options, number))
        for what, number in others.items()
        if 0 <= number < len(reader)
    ]
    page = sample_page(
        reader,
        options.sample,
        tokenizer,
        tile_positions=model.tile_positions(),
        model=named,
        commands=commands,
    )
    write_whole(options.output, page)
    say("\n".join([f"wrote {options.output}", *(f"{what:9} {line}" for what, line in commands)]))
    return 0


def _script() -> str:
    """How this process was started, where no console script did it."""
    return shlex.join([sys.executable, sys.argv[0]])


def _command(prog: str, options: ShowOptions, number: int) -> str:
    """What shows another sample."""
    words: list[object] = ["show", options.prefix, number, "--output", options.output]
    if options.tokenizer is not None:
        words += ["--tokenizer", options.tokenizer]
    if options.config:
        words += ["--config", *options.config]
    return f"{prog} {shlex.join(map(str, words))}"


def _model(recipes: Sequence[Path]) -> "tuple[ModelConfig, str]":
    """The model whose positions are counted, and which that is. Raises ConfigError."""
    from vila_mc.config.load import load_model

    named = "the default model; --config counts those of yours"
    return load_model(recipes), ", ".join(map(str, recipes)) or named


def _verify(options: VerifyOptions) -> int:
    from vila_mc.data.inspection.verify_dataset import verify

    found = verify(options.prefix, options.workers)
    if found.faults:
        for fault in found.faults[:_SHOWN_FAULTS]:
            say(fault)
        count = len(found.faults)
        raise DataError(
            f"{options.prefix} has {count:,} fault{'s' if count > 1 else ''}. Copy the set again "
            "or preprocess the raw data again."
        )
    checked = "checksums agree" if found.has_checksum else "version 1 has no checksum of .bin"
    say(f"{options.prefix} is whole: {checked}, {found.images:,} images decode")
    return 0


def _export(options: ExportOptions) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.write_records import export
    from vila_mc.data.tokenizers.tokenizer import Tokenizer

    count = export(IndexedReader(options.prefix), Tokenizer(options.tokenizer), options.output)
    say(f"{options.output}: {count:,} samples")
    return 0


if __name__ == "__main__":
    run_cli(main)

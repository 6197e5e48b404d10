"""Look into indexed datasets. See docs/data_format.md.

summary  counts, and histograms of lengths and images as PNG
show     one sample as an HTML page: images in place, tokens, which are trained on
verify   checksums; every image decodes; every token lies in the vocabulary
export   back to JSON Lines and image files
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.errors import DataError, run_cli
from vila_mc.files import write_whole

_SHOWN_FAULTS = 20


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Parse and call."""
    options = _parser().parse_args(arguments)
    commands: dict[str, Callable[[Any], int]] = {
        "summary": _summary,
        "show": _show,
        "verify": _verify,
        "export": _export,
    }
    return commands[options.command](options)


def _parser() -> ErrorRaisingParser:
    parser = ErrorRaisingParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> ErrorRaisingParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of the dataset")
        return made

    summary = command("summary", "counts, and histograms of lengths and images")
    summary.add_argument("--png", type=Path, metavar="FILE", help="where to draw the histograms")
    show = command("show", "one sample as an HTML page")
    show.add_argument("sample", type=int, metavar="N", help="which sample, from 0")
    show.add_argument("--output", type=Path, required=True, metavar="HTML", help="page to write")
    show.add_argument("--tokenizer", type=Path, metavar="MODEL", help="default: show ids alone")
    verify = command("verify", "checksums; every image decodes; every token is in the vocabulary")
    verify.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default: 1)"
    )
    export = command("export", "back to JSON Lines and image files")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument("--tokenizer", type=Path, required=True, metavar="MODEL")
    return parser


def _summary(options: Any) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.summary import plot_summary, summary_lines

    reader = IndexedReader(options.prefix)
    print("\n".join(summary_lines(reader)))
    if options.png is not None:
        plot_summary(reader, options.png)
        print(f"histograms {options.png}")
    return 0


def _show(options: Any) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.page import sample_page
    from vila_mc.data.tokenizers.tokenizer import Tokenizer

    tokenizer = None if options.tokenizer is None else Tokenizer(options.tokenizer)
    page = sample_page(IndexedReader(options.prefix), options.sample, tokenizer)
    write_whole(options.output, page)
    print(f"wrote {options.output}")
    return 0


def _verify(options: Any) -> int:
    from vila_mc.data.inspection.verify_dataset import verify

    found = verify(options.prefix, options.workers)
    if found.faults:
        for fault in found.faults[:_SHOWN_FAULTS]:
            print(fault)
        count = len(found.faults)
        raise DataError(
            f"{options.prefix} has {count:,} fault{'s' if count > 1 else ''}. Copy the set again "
            "or re-run tools/preprocess_data.py."
        )
    checked = "checksums agree" if found.has_checksum else "version 1 has no checksum of .bin"
    print(f"{options.prefix} is whole: {checked}, {found.images:,} images decode")
    return 0


def _export(options: Any) -> int:
    from vila_mc.data.indexed.reader import IndexedReader
    from vila_mc.data.inspection.write_records import export
    from vila_mc.data.tokenizers.tokenizer import Tokenizer

    count = export(IndexedReader(options.prefix), Tokenizer(options.tokenizer), options.output)
    print(f"{options.output}: {count:,} samples")
    return 0


if __name__ == "__main__":
    run_cli(main)

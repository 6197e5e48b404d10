"""Turn raw corpora into an indexed dataset for training. See docs/data_format.md."""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.data.conversation import TEMPLATES
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.preprocess import RejectionLimit, expand_inputs, preprocess
from vila_mc.data.sources.conversations import read_conversations
from vila_mc.data.sources.interleaved import read_interleaved
from vila_mc.data.sources.pairs import read_pairs
from vila_mc.data.sources.records import Rejected
from vila_mc.data.sources.text import read_text
from vila_mc.errors import run_cli
from vila_mc.flow import RawSample

Samples = Iterator[RawSample | Rejected]

KINDS = {
    "text": "JSON Lines with one document a line",
    "pairs": "JSON Lines with image and caption (or text)",
    "interleaved": "MMC4 JSON Lines: text_list and image_info",
    "conversations": "LLaVA JSON or JSON Lines: conversations, and image or images",
}


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Parse, call, print the closing lines."""
    top = ErrorRaisingParser(
        description=__doc__,
        epilog="\n".join(f"  {kind:14} {text}" for kind, text in KINDS.items()),
        usage="%(prog)s {text,pairs,interleaved,conversations} --help",
        formatter_class=RawDescriptionHelpFormatter,
    )
    top.add_argument("kind", choices=tuple(KINDS))
    kind = top.parse_args(arguments[:1]).kind
    options = _parser(kind).parse_args(arguments[1:])
    files = expand_inputs(options.input)
    images = getattr(options, "images", None) or files[0].parent
    readers: dict[str, Callable[[], Samples]] = {
        "text": lambda: read_text(files, options.text_key),
        "pairs": lambda: read_pairs(files, images),
        "interleaved": lambda: read_interleaved(files, images),
        "conversations": lambda: read_conversations(files, images, options.template),
    }
    made = preprocess(
        readers[kind](),
        options.output,
        "text" if kind == "text" else "multimodal",
        options.tokenizer,
        source=_source(kind, options, files),
        workers=options.workers,
        limit=RejectionLimit.parse(options.max_rejected),
        max_pixels=options.max_pixels,
    )
    print("\n".join(made.lines()))
    return 0


def _parser(kind: str) -> ErrorRaisingParser:
    parser = ErrorRaisingParser(prog=f"preprocess_data.py {kind}", description=KINDS[kind])
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="files or glob patterns")
    add("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the dataset")
    add("--tokenizer", type=Path, required=True, metavar="MODEL", help="SentencePiece .model")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add(
        "--max-rejected",
        default="1%",
        metavar="LIMIT",
        help="bad records beyond which the run fails: a number or a share (default: 1%%)",
    )
    add(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help=f"largest image that is accepted (default: {DEFAULT_MAX_PIXELS})",
    )
    if kind == "text":
        add("--text-key", default="text", metavar="KEY", help="key of the document (default: text)")
    else:
        add(
            "--images",
            type=Path,
            metavar="DIR",
            help="folder of the images (default: that of the first input file)",
        )
    if kind == "conversations":
        add(
            "--template",
            choices=TEMPLATES,
            default="vicuna_v1",
            help="how turns become text (default: vicuna_v1)",
        )
    return parser


def _source(kind: str, options: Any, files: list[Path]) -> dict[str, Any]:
    """What the manifest says about the origin: names only, so that the place does not matter."""
    source: dict[str, Any] = {"kind": kind, "files": [file.name for file in files]}
    if kind == "conversations":
        source["template"] = options.template
    return source


if __name__ == "__main__":
    run_cli(main)

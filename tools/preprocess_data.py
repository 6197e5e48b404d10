"""Turn raw corpora into an indexed dataset for training. See docs/data_format.md."""

import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.data.chat_templates import TEMPLATES, find_template
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.ingest.encode import ImagePolicy
from vila_mc.data.ingest.preprocess import expand_inputs, preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.conversations import MOST_FRAMES, ConversationSource
from vila_mc.data.sources.image_files import ImageFolder, Images, ImageTars
from vila_mc.data.sources.interleaved import MOST_IMAGES, InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Source
from vila_mc.data.sources.text import TextSource
from vila_mc.errors import ConfigError, run_cli

KINDS = {
    "text": "JSON Lines with one document a line",
    "pairs": "WebDataset .tar, img2dataset .parquet beside .tar, or JSON Lines with image, caption",
    "interleaved": "MMC4 JSON Lines: text_list and image_info",
    "conversations": "LLaVA JSON or JSON Lines, ShareGPT-like messages, question and answer",
}


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Parse, call, print the closing table."""
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
    images = None if kind == "text" else _images(options, files)
    made = preprocess(
        _source(kind, options, files, images),
        options.output,
        "text" if kind == "text" else "multimodal",
        options.tokenizer,
        facts=_facts(kind, options, images),
        workers=options.workers,
        limit=RejectionLimit.parse(options.max_rejected),
        images=_images_policy(options),
        resume=options.resume,
    )
    print("\n".join(made.lines()))
    return 0


def _source(kind: str, options: Any, files: list[Path], images: Images | None) -> Source:
    if images is None:
        return TextSource(files, options.text_key)
    if kind == "pairs":
        return PairSource(files, images, options.caption_key)
    if kind == "interleaved":
        return InterleavedSource(
            files,
            images,
            options.max_images,
            options.min_similarity,
            options.skip_missing_images,
            options.as_pairs,
        )
    return ConversationSource(files, images, find_template(options.template), options.max_frames)


def _images(options: Any, files: list[Path]) -> Images:
    """The folder of the images, or the archives that hold them."""
    if options.images is None:
        return ImageFolder(files[0].parent)
    if len(options.images) == 1 and Path(options.images[0]).is_dir():
        return ImageFolder(Path(options.images[0]))
    tars = expand_inputs(options.images, "--images")
    if others := [tar for tar in tars if tar.suffix != ".tar"]:
        raise ConfigError(f"--images {others[0]} is neither a folder nor a .tar. Give one of them.")
    return ImageTars(tuple(tars))


def _images_policy(options: Any) -> ImagePolicy:
    if options.kind == "text":
        return ImagePolicy()
    return ImagePolicy(options.max_pixels, options.resize)


def _parser(kind: str) -> ErrorRaisingParser:
    parser = ErrorRaisingParser(prog=f"preprocess_data.py {kind}", description=KINDS[kind])
    parser.set_defaults(kind=kind)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="files or glob patterns")
    add("--output", type=_prefix, required=True, metavar="PREFIX", help="prefix of the dataset")
    add(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="MODEL",
        help="SentencePiece .model, Hugging Face tokenizer.json, or a folder with either",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was stopped, if there is one; a finished set is left as it is",
    )
    add(
        "--max-rejected",
        default="1%",
        metavar="LIMIT",
        help="bad records beyond which the run fails: a number or a share (default: 1%%)",
    )
    if kind == "text":
        add("--text-key", default="text", metavar="KEY", help="key of the document (default: text)")
    else:
        _add_image_options(parser)
    if kind == "pairs":
        add(
            "--caption-key",
            metavar="KEY",
            help="key, or column, of the caption (default: caption, else text)",
        )
    if kind == "interleaved":
        _add_interleaved_options(parser)
    if kind == "conversations":
        add(
            "--template",
            default="vicuna_v1",
            metavar="NAME",
            help=f"{', '.join(TEMPLATES)}, or a YAML file (default: vicuna_v1)",
        )
        add(
            "--max-frames",
            type=_positive,
            default=MOST_FRAMES,
            metavar="N",
            help=f"frames of a video that are kept, evenly spread (default: {MOST_FRAMES})",
        )
    return parser


def _add_image_options(parser: ErrorRaisingParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        nargs="+",
        metavar="DIR",
        help="folder of the images, or .tar archives with them (default: folder of the input)",
    )
    add(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help=f"largest image that is accepted (default: {DEFAULT_MAX_PIXELS})",
    )
    add(
        "--resize",
        type=int,
        metavar="N",
        help="store images with a shorter side above N pixels at N, as JPEG (default: as they are)",
    )


def _add_interleaved_options(parser: ErrorRaisingParser) -> None:
    add = parser.add_argument
    add(
        "--max-images",
        type=_positive,
        default=MOST_IMAGES,
        metavar="N",
        help=f"images of a document that are kept (default: {MOST_IMAGES})",
    )
    add(
        "--min-similarity",
        type=float,
        metavar="X",
        help="leave out images less similar to their sentence (default: keep all)",
    )
    add(
        "--skip-missing-images",
        action="store_true",
        help="leave out images that are not there (default: reject their document)",
    )
    add(
        "--as-pairs",
        action="store_true",
        help="a sample per image, with its sentence as the caption (VILA's MMC4-pairs)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{number} is too small; it must be at least 1")
    return number


_positive.__name__ = "positive number"


def _prefix(text: str) -> Path:
    if not text or text.endswith("/"):
        raise ArgumentTypeError(f"{text!r} is a folder; add the name of the dataset")
    return Path(text)


def _facts(kind: str, options: Any, images: Images | None) -> dict[str, Any]:
    """What the manifest says about the source, beside its files."""
    own = {
        "text": ("text_key",),
        "pairs": ("caption_key",),
        "interleaved": ("max_images", "min_similarity", "skip_missing_images", "as_pairs"),
        "conversations": ("template", "max_frames"),
    }
    facts = {"kind": kind} | {name: getattr(options, name) for name in own[kind]}
    if kind == "conversations" and options.template not in TEMPLATES:
        facts["template"] = asdict(find_template(options.template))
    return facts if images is None else facts | {"images": images.describe()}


if __name__ == "__main__":
    run_cli(main)

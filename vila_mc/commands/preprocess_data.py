"""``vila-mc preprocess``: raw corpora to an indexed dataset. See docs/data_format.md."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from vila_mc.commands.command import Job, run_one_of
from vila_mc.config.options import Argument
from vila_mc.config.values import read_path
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
from vila_mc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """From which files, to which dataset."""

    input: Annotated[tuple[str, ...], Argument("FILE")]
    """Files or glob patterns."""
    output: Annotated[str, Argument("PREFIX")]
    """Prefix of the dataset."""
    tokenizer: Annotated[Path, Argument("MODEL")]
    """SentencePiece .model, Hugging Face tokenizer.json, or a folder with either."""
    workers: int = 1
    """Processes."""
    resume: bool = False
    """Go on with a run that was stopped, if there is one; a finished set is left as it is."""
    max_rejected: Annotated[str, Argument("LIMIT")] = "1%"
    """Bad records beyond which the run fails: a number or a share."""

    def __post_init__(self) -> None:
        if not self.output or self.output.endswith("/"):
            raise ConfigError(
                f"--output {self.output!r} is a folder; add the name of the dataset, such as "
                f"{self.output or 'data/'}pairs."
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions(PreprocessOptions):
    """JSON Lines with one document a line."""

    text_key: Annotated[str, Argument("KEY")] = "text"
    """Key of the document."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PreprocessOptions):
    """From which files with images, to which dataset."""

    images: Annotated[tuple[str, ...], Argument("DIR")] = ()
    """Folder of the images, or .tar archives with them (default: folder of the input)."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest image that is accepted."""
    resize: int | None = None
    """Store images with a shorter side above N pixels at N, as JPEG (default: as they are)."""


@dataclass(frozen=True, kw_only=True)
class PairsOptions(ImageOptions):
    """WebDataset .tar, img2dataset .parquet beside .tar, or JSON Lines with image, caption."""

    caption_key: Annotated[str | None, Argument("KEY")] = None
    """Key, or column, of the caption (default: caption, else text)."""


@dataclass(frozen=True, kw_only=True)
class InterleavedOptions(ImageOptions):
    """MMC4 JSON Lines: text_list and image_info."""

    max_images: PositiveInt = MOST_IMAGES
    """Images of a document that are kept."""
    min_similarity: float | None = None
    """Leave out images less similar to their sentence (default: keep all)."""
    skip_missing_images: bool = False
    """Leave out images that are not there (default: reject their document)."""
    as_pairs: bool = False
    """A sample per image, with its sentence as the caption (VILA's MMC4-pairs)."""


@dataclass(frozen=True, kw_only=True)
class ConversationsOptions(ImageOptions):
    """LLaVA JSON or JSON Lines, ShareGPT-like messages, question and answer."""

    template: Annotated[str, Argument("NAME")] = "vicuna_v1"
    """plain, vicuna_v1, llama_2, or a YAML file."""
    max_frames: PositiveInt = MOST_FRAMES
    """Frames of a video that are kept, evenly spread."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print the closing table. Raises VilaError."""
    return run_one_of(
        {
            "text": Job(TextOptions, _text),
            "pairs": Job(PairsOptions, _pairs),
            "interleaved": Job(InterleavedOptions, _interleaved),
            "conversations": Job(ConversationsOptions, _conversations),
        },
        "kind",
        arguments,
        prog,
        summary="Turn raw corpora into an indexed dataset for training.",
    )


def _text(options: TextOptions) -> int:
    source = TextSource(expand_inputs(options.input), options.text_key)
    return _preprocess(options, source, {"kind": "text", "text_key": options.text_key})


def _pairs(options: PairsOptions) -> int:
    facts = {"kind": "pairs", "caption_key": options.caption_key}
    return _with_images(
        options, lambda files, images: PairSource(files, images, options.caption_key), facts
    )


def _interleaved(options: InterleavedOptions) -> int:
    own = ("max_images", "min_similarity", "skip_missing_images", "as_pairs")
    chosen = {name: getattr(options, name) for name in own}

    def source(files: list[Path], images: Images) -> Source:
        return InterleavedSource(files, images, *chosen.values())

    return _with_images(options, source, {"kind": "interleaved", **chosen})


def _conversations(options: ConversationsOptions) -> int:
    template = find_template(options.template)
    is_built_in = options.template in TEMPLATES
    facts = {
        "kind": "conversations",
        "template": options.template if is_built_in else asdict(template),
        "max_frames": options.max_frames,
    }
    return _with_images(
        options,
        lambda files, images: ConversationSource(files, images, template, options.max_frames),
        facts,
    )


def _with_images(
    options: ImageOptions,
    source: Callable[[list[Path], Images], Source],
    facts: dict[str, Any],
) -> int:
    files = expand_inputs(options.input)
    images = _images(options.images, files)
    policy = ImagePolicy(options.max_pixels, options.resize)
    return _preprocess(
        options, source(files, images), facts | {"images": images.describe()}, policy
    )


def _preprocess(
    options: PreprocessOptions,
    source: Source,
    facts: dict[str, Any],
    images: ImagePolicy | None = None,
) -> int:
    """``facts`` is what the manifest says about the source, beside its files."""
    made = preprocess(
        source,
        read_path(options.output, "--output"),
        "text" if images is None else "multimodal",
        options.tokenizer,
        facts=facts,
        workers=options.workers,
        limit=RejectionLimit.parse(options.max_rejected),
        images=images or ImagePolicy(),
        resume=options.resume,
    )
    print("\n".join(made.lines()))
    return 0


def _images(given: Sequence[str], files: list[Path]) -> Images:
    """The folder of the images, or the archives that hold them."""
    if not given:
        return ImageFolder(files[0].parent)
    if len(given) == 1 and Path(given[0]).is_dir():
        return ImageFolder(Path(given[0]))
    tars = expand_inputs(given, "images")
    if others := [tar for tar in tars if tar.suffix != ".tar"]:
        raise ConfigError(f"--images {others[0]} is neither a folder nor a .tar. Give one of them.")
    return ImageTars(tuple(tars))

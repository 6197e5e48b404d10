"""What is asked of any raw kind; each kind adds its own and says how it is opened.

A kind is one dataclass in a file of its own and one line of ``vila_mc.data.sources.kinds``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from vila_mc.config.options import Argument
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.indexed.dataset_manifest import SetKind
from vila_mc.data.ingest.encode import AS_IS, ImagePolicy
from vila_mc.data.ingest.inputs import expand_inputs
from vila_mc.data.sources.image_files import ImageFolder, Images, ImageTars
from vila_mc.data.sources.records import Source
from vila_mc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RawOptions:
    """From which files, to which dataset."""

    input: Annotated[tuple[str, ...], Argument("FILE")]
    """Files or glob patterns."""
    output: Annotated[str, Argument("PREFIX")]
    """Prefix of the dataset."""
    tokenizer: Annotated[Path, Argument("MODEL")]
    """SentencePiece .model, Hugging Face tokenizer.json, or a folder with either."""
    workers: PositiveInt = 1
    """Processes."""
    resume: bool = False
    """Go on with a run that was stopped, if there is one; a finished set is left as it is."""
    max_rejected: Annotated[str, Argument("LIMIT")] = "1%"
    """Bad records beyond which the run fails: a number or a share."""

    def __post_init__(self) -> None:
        if not self.output or self.output.endswith("/") or self._is_folder():
            folder = self.output.rstrip("/") or "data"
            raise ConfigError(
                f"output is {self.output!r}, a folder; add the name of the dataset, such as "
                f"{folder}/pairs.",
                option="output",
            )

    def _is_folder(self) -> bool:
        """Whether the set would lie beside a folder of its name, where it would be looked for."""
        return Path(self.output).expanduser().is_dir()

    def source(self) -> Source:
        """The corpus. Raises DataError, ConfigError."""
        raise NotImplementedError

    def set_kind(self) -> SetKind:
        """What kind of dataset it becomes."""
        return "text"

    def image_policy(self) -> ImagePolicy:
        """Which images are taken, and as what. Raises ConfigError."""
        return AS_IS

    def facts(self) -> dict[str, Any]:
        """What the manifest says about the corpus, beside its files: the options of the kind."""
        common = {field.name for base in (RawOptions, ImageOptions) for field in fields(base)}
        return {name: value for name, value in asdict(self).items() if name not in common}


@dataclass(frozen=True, kw_only=True)
class ImageOptions(RawOptions):
    """From which files with images, to which dataset."""

    images: Annotated[tuple[str, ...], Argument("DIR|TAR")] = ()
    """One folder of the images, or .tar archives with them (default: folder of the input)."""
    follow_links: bool = False
    """Follow links in the folder of the images that lead out of it."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest image that is accepted."""
    resize: int | None = None
    """Store images with a shorter side above N pixels at N, as JPEG (default: as they are)."""

    def set_kind(self) -> SetKind:
        """See ``RawOptions.set_kind``."""
        return "multimodal"

    def image_policy(self) -> ImagePolicy:
        """See ``RawOptions.image_policy``."""
        return ImagePolicy(self.max_pixels, self.resize)

    def files_and_images(self) -> tuple[Sequence[Path], Images]:
        """The input; the folder or archives of its images. Raises DataError, ConfigError."""
        files = expand_inputs(self.input)
        if not self.images:
            return files, ImageFolder(files[0].parent, self.follow_links)
        if len(self.images) == 1 and Path(self.images[0]).is_dir():
            return files, ImageFolder(Path(self.images[0]), self.follow_links)
        if folder := next((one for one in self.images if Path(one).is_dir()), None):
            raise ConfigError(
                f"images is {folder}, a folder, and {len(self.images) - 1} more. Give one folder, "
                "in which all images lie, or .tar archives.",
                option="images",
            )
        tars = expand_inputs(self.images, "images")
        if others := [tar for tar in tars if tar.suffix != ".tar"]:
            raise ConfigError(
                f"images is {others[0]}, neither a folder nor a .tar. Give one of them.",
                option="images",
            )
        return files, ImageTars(tuple(tars))

    def facts(self) -> dict[str, Any]:
        """See ``RawOptions.facts``."""
        _, images = self.files_and_images()
        followed = {"follow_links": True} if self.follow_links else {}
        return super().facts() | {"images": images.describe()} | followed

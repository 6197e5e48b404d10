"""What an indexed dataset says about itself: PREFIX.manifest.json.

It is written last, so a set without it is incomplete.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import ConfigDict, Field, TypeAdapter

from vila_mc.data.indexed.layout import with_suffix
from vila_mc.errors import DataError
from vila_mc.foreign_files import ForeignFileError, parse_foreign, read_foreign

FORMAT_VERSION: Literal[3] = 3
"""Indices of versions 1 and 2 do not end with the sides of images, and manifests of version 1 have
no ``bin_sha256``."""
WITH_SIDES = 3
"""First version whose index has the sides of images."""
SUFFIX = ".manifest.json"
PARTIAL_SUFFIX = ".partial"
"""Suffix of the folder that holds a set until it is finished."""

SetKind = Literal["text", "multimodal"]
_Version = Literal[1, 2, 3]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_LARGEST_BYTES = 1 << 26
"""Ours take some kilobytes, and a line for every raw file."""


class _Versioned(TypedDict):
    """What the manifest of any version says."""

    format_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """Facts that training checks before it reads a set."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    format_version: _Version
    """``FORMAT_VERSION`` of the tool that wrote the set."""
    kind: SetKind
    """text: tokens alone, in Megatron-LM's own layout. multimodal: text pieces and images."""
    tokenizer_sha256: str
    """Fingerprint of the tokenizer."""
    vocab_size: _Count
    """Token ids of the tokenizer."""
    samples: _Count
    """Samples (Megatron: documents)."""
    tokens: _Count
    """Text tokens of all samples, BOS and EOS included, visual tokens not."""
    images: _Count
    """Images of all samples."""
    bin_bytes: _Count
    """Size of PREFIX.bin."""
    idx_sha256: str
    """SHA-256 of PREFIX.idx."""
    source: dict[str, Any]
    """What the set was made from, and how."""
    tool_version: str
    """Version of vila_mc that wrote the set."""
    bin_sha256: str | None = None
    """SHA-256 of PREFIX.bin, None in sets of version 1."""


def contents_sha256(manifest: DatasetManifest) -> str:
    """SHA-256 of what a set holds, wherever it lies and whatever it was made from.

    Of a set of version 1, whose manifest has no checksum of .bin, the size stands in for it.
    """
    contents = f"{manifest.idx_sha256} {manifest.bin_sha256 or manifest.bin_bytes}"
    return hashlib.sha256(contents.encode()).hexdigest()


def to_json(manifest: DatasetManifest) -> str:
    """The text of a manifest file."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read_manifest(prefix: Path) -> DatasetManifest:
    """Read PREFIX.manifest.json.

    Raises:
        DataError: there is none, it is damaged, or a newer vila_mc wrote it.
    """
    file = with_suffix(prefix, SUFFIX)
    try:
        content = read_foreign(file, _LARGEST_BYTES)
        try:
            return parse_foreign(content, TypeAdapter(DatasetManifest))
        except ForeignFileError:
            _require_known_version(file, content)
            raise
    except FileNotFoundError:
        raise DataError(_explain_missing(prefix, file)) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    except ForeignFileError as error:
        raise DataError(f"{file} {error}. {REMAKE}") from None


def _require_known_version(file: Path, content: bytes) -> None:
    """Raises ForeignFileError: the manifest says no version. DataError: it says another one."""
    version = parse_foreign(content, TypeAdapter(_Versioned))["format_version"]
    if version not in get_args(_Version):
        raise DataError(
            f"{file} has format version {version}, but this vila_mc reads 1 to {FORMAT_VERSION}. "
            "Use the vila_mc that wrote it, or preprocess again."
        )


REMAKE = "Copy the set again or preprocess the raw data again."


def _explain_missing(prefix: Path, file: Path) -> str:
    for suffix in (".bin", ".idx", SUFFIX):
        whole = Path(str(prefix).removesuffix(suffix))
        if whole != prefix and with_suffix(whole, SUFFIX).exists():
            return f"{prefix} is one file of a dataset. Give the prefix of its files: {whole}."
    if with_suffix(prefix, PARTIAL_SUFFIX).exists():
        return (
            f"{prefix} is not finished: a run is writing it, or was stopped. Wait for it, or "
            "resume preprocessing."
        )
    if with_suffix(prefix, ".bin").exists() or with_suffix(prefix, ".idx").exists():
        return (
            f"{prefix} is incomplete: there is no {file}. Its preprocessing or copying did not "
            f"finish. {REMAKE}"
        )
    return (
        f"there is no dataset {prefix} (no {file}). Give the prefix that was the output of "
        "preprocessing."
    )

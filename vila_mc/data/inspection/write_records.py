"""A dataset back to JSON Lines and image files, in a form that can be preprocessed again.

Where every word is trained, records are those of the source: ``text``, ``image`` and ``caption``,
or MMC4's; the same keys for all samples of a set. What a template wrote cannot be told from what
was said, so conversations become ``parts``: texts, each with whether it is trained, and images.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vila_mc.data.image_codec import open_image
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.files import whole_directory
from vila_mc.flow import ImagePiece, Piece, TextPiece

_Shape = Literal["text", "pairs", "documents", "parts"]
_FOLDER_SIZE = 1000
"""Samples whose images share a folder."""


def export(reader: IndexedReader, tokenizer: Tokenizer, output: Path) -> int:
    """Write ``samples.jsonl`` and ``images/`` into a folder that does not exist yet.

    Args:
        reader: the dataset.
        tokenizer: what it was made with.
        output: the folder; it appears when everything is written.

    Returns:
        How many samples were written.

    Raises:
        DataError: the folder exists, or the tokenizer is another one.
    """
    if output.exists():
        raise DataError(f"{output} exists already. Delete it or choose another output.")
    if tokenizer.fingerprint() != reader.manifest.tokenizer_sha256:
        raise DataError(f"{reader.prefix} was made with another tokenizer than {tokenizer.path}.")
    shape = _shape_of(reader, tokenizer)
    with (
        whole_directory(output) as folder,
        (folder / "samples.jsonl").open("w", encoding="utf-8") as lines,
    ):
        for index in range(len(reader)):
            pieces = reader.sample(index)
            names = _write_images(pieces, index, folder)
            record = _record(pieces, names, tokenizer, shape)
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(reader)


def _shape_of(reader: IndexedReader, tokenizer: Tokenizer) -> _Shape:
    """One for all samples, so that one command can preprocess them again."""
    if reader.manifest.kind == "text":
        return "text"
    are_pairs = True
    for index in range(len(reader)):
        pieces = reader.sample(index)
        if _is_bos(pieces[0], tokenizer):
            pieces = pieces[1:]
        if not all(piece.is_trained for piece in pieces if isinstance(piece, TextPiece)):
            return "parts"
        are_pairs &= [isinstance(piece, ImagePiece) for piece in pieces] == [True, False]
    return "pairs" if are_pairs else "documents"


def _is_bos(piece: Piece, tokenizer: Tokenizer) -> bool:
    is_prompt = isinstance(piece, TextPiece) and not piece.is_trained
    return is_prompt and piece.ids.tolist() == [tokenizer.bos_id]  # type: ignore[union-attr]


def _record(
    pieces: Sequence[Piece], names: Sequence[str], tokenizer: Tokenizer, shape: _Shape
) -> dict[str, Any]:
    """One line; ``names`` are the files of the images, in order."""
    waiting = iter(names)
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, ImagePiece):
            parts.append({"image": next(waiting)})
        elif text := _text(piece, tokenizer):
            parts.append({"text": text, "is_trained": piece.is_trained})
    if shape == "parts":
        return {"parts": parts}
    text = "".join(part.get("text", "") for part in parts)
    if shape == "text":
        return {"text": text}
    return {"image": names[0], "caption": text} if shape == "pairs" else _mmc4(parts)


def _mmc4(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each run of text is a sentence; an image matches the run that follows it."""
    sentences = [part["text"] for part in parts if "text" in part]
    if "image" in parts[-1]:
        sentences.append("")
    infos, before = [], 0
    for part in parts:
        if "image" in part:
            infos.append({"image_name": part["image"], "matched_text_index": before})
        else:
            before += 1
    return {"text_list": sentences, "image_info": infos}


def _text(piece: TextPiece, tokenizer: Tokenizer) -> str:
    special = (tokenizer.bos_id, tokenizer.eos_id)
    return tokenizer.decode([i for i in piece.ids.tolist() if i not in special])


def _write_images(pieces: Sequence[Piece], index: int, root: Path) -> list[str]:
    names = []
    for number, piece in enumerate(piece for piece in pieces if isinstance(piece, ImagePiece)):
        data = bytes(piece.data)
        folder = f"images/{index // _FOLDER_SIZE:06}"
        name = f"{folder}/{index:09}_{number}.{_ending(data)}"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        names.append(name)
    return names


def _ending(data: bytes) -> str:
    try:
        return str(open_image(data, "an image").format).lower()
    except DataError:
        return "bin"

"""One sample as a self-contained HTML page: images in place, tokens, which are trained on."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jinja2
import numpy as np

from vila_mc.data.image_codec import decode_image, open_image
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.provenance import in_short
from vila_mc.data.tiles import Tiling
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.flow import ImagePiece, Piece, TextPiece

_SHOWN_BY_BROWSERS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, slots=True)
class _Token:
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece as the template shows it; ``tokens`` or ``image`` is set."""

    tokens: tuple[_Token, ...] = ()
    is_trained: bool = False
    image: str | None = None
    """A data: address."""
    caption: str = ""


def sample_page(
    reader: IndexedReader,
    index: int,
    tokenizer: Tokenizer | None,
    *,
    tile_positions: int,
    model: str = "",
    commands: Sequence[tuple[str, str]] = (),
) -> str:
    """The page of sample ``index``.

    Args:
        reader: the dataset, opened for the model's tiling.
        index: which sample, from 0.
        tokenizer: what the set was made with; without one, tokens are shown as their ids.
        tile_positions: positions that a tile takes in the model: an image, where it is not cut.
        model: in words, which model that is.
        commands: what else can be looked at, and how.

    Raises:
        DataError: there is no such sample, or the tokenizer is another one.
    """
    if not 0 <= index < len(reader):
        raise DataError(f"there is no sample {index} in {reader.prefix}; it has {len(reader):,}.")
    if tokenizer is not None and tokenizer.fingerprint() != reader.manifest.tokenizer_sha256:
        raise DataError(f"{reader.prefix} was made with another tokenizer than {tokenizer.path}.")
    stored = reader.sample(index)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vila_mc.data.inspection"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pieces = [_shown(piece, tokenizer, reader.tiling) for piece in stored]
    images = [piece.data for piece in stored if isinstance(piece, ImagePiece)]
    token_bytes = next((p.ids.itemsize for p in stored if isinstance(p, TextPiece)), 0)
    first = pieces[0]  # nothing stands before its first token that could predict it
    pieces[:1] = [_Piece(first.tokens[:1]), replace(first, tokens=first.tokens[1:])]
    return environment.get_template("sample.html").render(
        name=reader.prefix.name,
        index=index,
        samples=len(reader),
        pieces=pieces,
        num_tokens=sum(len(piece.tokens) for piece in pieces),
        num_trained=sum(len(piece.tokens) for piece in pieces if piece.is_trained),
        num_images=len(images),
        num_tiles=int(reader.sizes(np.array([index]))[1][0]),
        is_cut=reader.tiling is not None,
        tile_positions=tile_positions,
        model=model,
        token_bytes=token_bytes,
        image_bytes=sum(map(len, images)),
        commands=commands,
        source={key: in_short(value) for key, value in reader.manifest.source.items()},
    )


def _shown(piece: Piece, tokenizer: Tokenizer | None, tiling: Tiling | None) -> _Piece:
    if isinstance(piece, ImagePiece):
        shown = _shown_image(bytes(piece.data))
        if tiling is None or piece.sides is None:
            return shown
        columns, rows = tiling.grid(*piece.sides)
        more = " and a thumbnail" if tiling.count(*piece.sides) > columns * rows else ""
        return replace(shown, caption=f"{shown.caption}, cut into {columns} x {rows} tiles{more}")
    ids = piece.ids.tolist()
    texts = [str(i) if tokenizer is None else tokenizer.token(i) for i in ids]
    tokens = tuple(_Token(i, text) for i, text in zip(ids, texts, strict=True))
    return _Piece(tokens, piece.is_trained)


def _shown_image(data: bytes) -> _Piece:
    stored = len(data)
    try:
        image = open_image(data, "the image")
        kind, (width, height) = str(image.format), image.size
        if kind not in _SHOWN_BY_BROWSERS:
            buffer = io.BytesIO()
            decode_image(image, "the image").save(buffer, "PNG")
            data = buffer.getvalue()
    except DataError:
        return _Piece(image="data:,", caption=f"{len(data):,} bytes that are no image")
    mime = kind if kind in _SHOWN_BY_BROWSERS else "PNG"
    address = f"data:image/{mime.lower()};base64,{base64.b64encode(data).decode('ascii')}"
    return _Piece(image=address, caption=f"{kind}, {width} x {height} pixels, {stored:,} bytes")

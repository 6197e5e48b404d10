"""From a RawSample to an EncodedSample: tokenise the text, read and check the images."""

from vila_mc.data.images import check_image
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.flow import EncodedImage, EncodedSample, EncodedText, ImagePart, RawSample, TextPart


def encode_sample(sample: RawSample, tokenizer: Tokenizer, max_pixels: int) -> EncodedSample:
    """Encode one sample: BOS, then its parts in order; texts of one kind side by side are joined.

    In a sample without images that is trained from its first word on, BOS belongs to that first
    piece; elsewhere it is a piece, or part of one, that is not trained on.

    Raises:
        RejectionError: an image is missing, damaged or too large, or a text is not valid Unicode.
    """
    pieces: list[EncodedText | EncodedImage] = []
    first = sample.parts[0]
    ids = [tokenizer.bos_id]
    is_trained = isinstance(first, TextPart) and first.is_trained
    for part in sample.parts:
        if isinstance(part, ImagePart):
            pieces += [EncodedText(tuple(ids), is_trained)] if ids else []
            pieces.append(_encode_image(part, max_pixels))
            ids = []
            continue
        if ids and part.is_trained != is_trained:
            pieces.append(EncodedText(tuple(ids), is_trained))
            ids = []
        ids += _encode_text(part, tokenizer)
        is_trained = part.is_trained
    return EncodedSample((*pieces, EncodedText(tuple(ids), is_trained)) if ids else tuple(pieces))


def _encode_text(part: TextPart, tokenizer: Tokenizer) -> list[int]:
    try:
        ids = tokenizer.encode(part.text)
    except DataError as error:
        raise RejectionError("not valid Unicode", str(error)) from None
    return [*ids, tokenizer.eos_id] if part.ends_turn else ids


def _encode_image(part: ImagePart, max_pixels: int) -> EncodedImage:
    data = part.source if isinstance(part.source, bytes) else _read_file(part)
    try:
        width, height = check_image(data, part.name, max_pixels)
    except DataError as error:
        raise RejectionError("unusable image", str(error)) from None
    return EncodedImage(data, width, height)


def _read_file(part: ImagePart) -> bytes:
    assert not isinstance(part.source, bytes)
    try:
        if not part.source.is_file():
            raise RejectionError("missing image", f"there is no file {part.source}")
        return part.source.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise RejectionError("unreadable image", f"{part.name}: {error}") from None

"""From RawSamples to EncodedSamples: tokenise the texts, read and check the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vila_mc.data.images import (
    DEFAULT_MAX_PIXELS,
    MAX_IMAGE_BYTES,
    check_image,
    check_max_pixels,
    shrink_image,
)
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizers.tokenizer import Tokenizer, check_unicode
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import (
    EncodedSample,
    ImagePiece,
    Piece,
    RawImage,
    RawPiece,
    RawSample,
    RawText,
    TextPiece,
)


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """Which images are taken, and as what.

    Raises:
        ConfigError: a number is out of range.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest image."""
    resize: int | None = None
    """Store images whose shorter side is longer than this at this size, as JPEG; None: as is."""

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)
        if self.resize is not None and self.resize < 1:
            raise ConfigError(
                f"resize is {self.resize}; give the pixels of the shorter side.", option="resize"
            )


AS_IS = ImagePolicy()


def encode_samples(
    samples: Sequence[RawSample], tokenizer: Tokenizer, images: ImagePolicy
) -> Iterator[EncodedSample | RejectionError]:
    """Encode samples: BOS, then their pieces in order; texts of one kind side by side are joined.

    In a sample without images that is trained from its first word on, BOS belongs to that first
    piece; elsewhere it is a piece, or part of one, that is not trained on.

    Yields:
        For each sample what is stored, or why it cannot be: an image is missing, damaged or too
        large, or a text is not valid Unicode.
    """
    texts: list[str] = []
    faults: dict[int, RejectionError] = {}
    for number, sample in enumerate(samples):
        own = list(_texts(sample, tokenizer))
        try:
            for text in own:
                check_unicode(text)
        except DataError as error:
            faults[number] = RejectionError("not valid Unicode", str(error))
            own = []
        texts += own
    try:
        encoded = iter(tokenizer.encode_batch(texts))
    except DataError as error:
        if len(samples) > 1:  # find out which
            for sample in samples:
                yield from encode_samples([sample], tokenizer, images)
            return
        yield RejectionError("special token", str(error))
        return
    bos, eos = (np.array([i], np.int32) for i in (tokenizer.bos_id, tokenizer.eos_id))
    for number, sample in enumerate(samples):
        if number in faults:
            yield faults[number]
            continue
        ids = [next(encoded) for piece in sample.pieces if isinstance(piece, RawText)]
        try:
            yield _assemble(sample, ids, bos, eos, images)
        except RejectionError as error:
            yield error


def encode_sample(sample: RawSample, tokenizer: Tokenizer, max_pixels: int) -> EncodedSample:
    """Encode one sample, see ``encode_samples``. Raises RejectionError."""
    (result,) = encode_samples([sample], tokenizer, ImagePolicy(max_pixels))
    if isinstance(result, RejectionError):
        raise result
    return result


def _texts(sample: RawSample, tokenizer: Tokenizer) -> Iterator[str]:
    """Texts to tokenise. An answer follows its prompt after a space, whoever has to write it."""
    before: RawPiece | None = None
    for piece in sample.pieces:
        if isinstance(piece, RawText):
            is_answer = isinstance(before, RawText) and piece.is_trained and not before.is_trained
            needs_space = is_answer and not tokenizer.adds_space
            yield f" {piece.text}" if needs_space else piece.text
        before = piece


def _assemble(
    sample: RawSample,
    encoded: Sequence[np.ndarray],
    bos: np.ndarray,
    eos: np.ndarray,
    images: ImagePolicy,
) -> EncodedSample:
    """``encoded`` are the ids of its texts, ``bos`` and ``eos`` arrays of one."""
    pieces: list[Piece] = []
    first = sample.pieces[0]
    run = [bos]
    is_trained = isinstance(first, RawText) and first.is_trained
    texts = iter(encoded)
    for piece in sample.pieces:
        if isinstance(piece, RawImage):
            pieces += [TextPiece(np.concatenate(run), is_trained)] if run else []
            pieces.append(_encode_image(piece, images))
            run = []
            continue
        if run and piece.is_trained != is_trained:
            pieces.append(TextPiece(np.concatenate(run), is_trained))
            run = []
        run.append(next(texts))
        run += [eos] if piece.ends_turn else []
        is_trained = piece.is_trained
    pieces += [TextPiece(np.concatenate(run), is_trained)] if run else []
    return EncodedSample(tuple(pieces))


def _encode_image(image: RawImage, policy: ImagePolicy) -> ImagePiece:
    data = image.source if isinstance(image.source, bytes) else _read_file(image)
    try:
        if policy.resize is not None:
            data = shrink_image(data, policy.resize, image.name, policy.max_pixels)
        else:
            check_image(data, image.name, policy.max_pixels)
    except DataError as error:
        raise RejectionError("unusable image", str(error)) from None
    return ImagePiece(data, image.name)


def _read_file(image: RawImage) -> bytes:
    assert not isinstance(image.source, bytes)
    try:
        if not image.source.is_file():
            raise RejectionError("missing image", f"there is no file {image.source}")
        if image.source.stat().st_size > MAX_IMAGE_BYTES:
            raise RejectionError(
                "unusable image", f"{image.name} has more than {MAX_IMAGE_BYTES:,} bytes"
            )
        return image.source.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise RejectionError("unreadable image", f"{image.name}: {error}") from None

"""From RawSamples to EncodedSamples: tokenise the texts, read and check the images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from vila_mc.data.image_codec import is_turned
from vila_mc.data.images import (
    DEFAULT_MAX_PIXELS,
    check_image,
    check_max_pixels,
    shrink_image,
)
from vila_mc.data.sources.image_files import read_image
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
    RawToken,
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
SPELLED = "a special token is spelled in a text and read as plain characters"
TURNED = "an image that viewers turn (EXIF orientation) is read as it lies in the file"


def encode_samples(
    samples: Sequence[RawSample], tokenizer: Tokenizer, images: ImagePolicy
) -> Iterator[EncodedSample | RejectionError]:
    """Encode samples: BOS, then their pieces in order; texts of one kind side by side are joined.

    In a sample without images that is trained from its first word on, BOS belongs to that first
    piece; elsewhere it is a piece, or part of one, that is not trained on. Where the tokenizer has
    no BOS, or its own chat template wrote the sample, none is put.

    Yields:
        For each sample what is stored, or why it cannot be: an image is missing, damaged or too
        large, or a text is not valid Unicode.
    """
    texts: list[str] = []
    goes_on: list[bool] = []
    faults: dict[int, RejectionError] = {}
    for number, sample in enumerate(samples):
        try:
            own = list(_texts(sample))
        except DataError as error:
            faults[number] = RejectionError("not valid Unicode", str(error))
            continue
        texts += [text for text, _ in own]
        goes_on += [on for _, on in own]
    try:
        encoded = iter(tokenizer.encode_batch(texts, goes_on))
    except DataError as error:
        if len(samples) > 1:  # find out which
            for sample in samples:
                yield from encode_samples([sample], tokenizer, images)
            return
        yield RejectionError("special token", str(error))
        return
    for number, sample in enumerate(samples):
        if number in faults:
            yield faults[number]
            continue
        ids = [next(encoded) for piece in sample.pieces if _is_plain(piece)]
        try:
            yield _assemble(sample, ids, tokenizer, images)
        except RejectionError as error:
            yield error


def encode_sample(sample: RawSample, tokenizer: Tokenizer, max_pixels: int) -> EncodedSample:
    """Encode one sample, see ``encode_samples``. Raises RejectionError."""
    (result,) = encode_samples([sample], tokenizer, ImagePolicy(max_pixels))
    if isinstance(result, RejectionError):
        raise result
    return result


def _is_rendered(piece: RawPiece) -> bool:
    return isinstance(piece, RawText) and piece.is_rendered


def _is_plain(piece: RawPiece) -> bool:
    return isinstance(piece, RawText) and not piece.is_rendered


def _texts(sample: RawSample) -> Iterator[tuple[str, bool]]:
    """Plain texts, and whether each goes on where another ends. Raises DataError."""
    before: RawPiece | None = None
    for piece in sample.pieces:
        if isinstance(piece, RawText):
            check_unicode(piece.text)
            if not piece.is_rendered:
                yield piece.text, isinstance(before, RawText) and not before.ends_turn
        before = piece


def _assemble(
    sample: RawSample, encoded: Sequence[np.ndarray], tokenizer: Tokenizer, images: ImagePolicy
) -> EncodedSample:
    """``encoded`` are the ids of its plain texts."""
    first = sample.pieces[0]
    made = _Pieces(is_trained=isinstance(first, RawText) and first.is_trained)
    if tokenizer.bos_id is not None and not any(map(_is_rendered, sample.pieces)):
        made.run.append(_one(tokenizer.bos_id))
    texts = iter(encoded)
    for are_rendered, group in groupby(sample.pieces, _is_rendered):
        if are_rendered:
            rendered = [piece for piece in group if isinstance(piece, RawText)]
            for ids, is_trained in tokenizer.encode_rendered(
                [piece.text for piece in rendered], [piece.is_trained for piece in rendered]
            ):
                made.add(ids, is_trained)
            continue
        for piece in group:
            if isinstance(piece, RawImage):
                made.add_image(_encode_image(piece, images, made.noticed))
            elif isinstance(piece, RawToken):
                made.add(_token_ids(piece, tokenizer), piece.is_trained)
            else:
                made.add(next(texts), piece.is_trained)
                if tokenizer.spells_special(piece.text):
                    made.noticed.add(SPELLED)
                if piece.ends_turn:
                    made.add(_one(tokenizer.eos_id), piece.is_trained)
    own = sum(_num_tokens(tokenizer, words) for words in sample.template_words)
    return EncodedSample(made.done(), tuple(sorted(made.noticed)), own)


@lru_cache(maxsize=1024)
def _num_tokens(tokenizer: Tokenizer, words: str) -> int:
    """Of what a template writes again and again."""
    try:
        return len(tokenizer.encode(words))
    except DataError:  # read as a special token whatever one does; in the sample it stood with more
        return 0


def _token_ids(piece: RawToken, tokenizer: Tokenizer) -> np.ndarray:
    if piece.name is not None:
        return _one(tokenizer.special_id(piece.name))
    return np.empty(0, np.int32) if tokenizer.bos_id is None else _one(tokenizer.bos_id)


def _one(token_id: int) -> np.ndarray:
    return np.array([token_id], np.int32)


class _Pieces:
    """Pieces of one sample; ids of one kind side by side become one of them."""

    def __init__(self, is_trained: bool) -> None:
        self._pieces: list[Piece] = []
        self.run: list[np.ndarray] = []
        self.noticed: set[str] = set()
        self._is_trained = is_trained

    def add(self, ids: np.ndarray, is_trained: bool) -> None:
        if is_trained != self._is_trained:
            self._end_run()
        self._is_trained = is_trained
        self.run.append(ids)

    def add_image(self, image: ImagePiece) -> None:
        self._end_run()
        self._pieces.append(image)

    def done(self) -> tuple[Piece, ...]:
        self._end_run()
        return tuple(self._pieces)

    def _end_run(self) -> None:
        if self.run:
            self._pieces.append(TextPiece(np.concatenate(self.run), self._is_trained))
        self.run = []


def _encode_image(image: RawImage, policy: ImagePolicy, noticed: set[str]) -> ImagePiece:
    data = read_image(image)
    if is_turned(data):
        noticed.add(TURNED)
    try:
        if policy.resize is not None:
            data, sides = shrink_image(data, policy.resize, image.name, policy.max_pixels)
        else:
            sides = image.sides or check_image(data, image.name, policy.max_pixels)
    except DataError as error:
        raise RejectionError("unusable image", str(error)) from None
    return ImagePiece(data, image.name, sides)

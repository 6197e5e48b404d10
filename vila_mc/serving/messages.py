"""The messages of a request, as turns of a conversation and images."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vila_mc.data.image_codec import open_image
from vila_mc.data.tokenizers.tokenizer import check_unicode
from vila_mc.data.turns import IMAGE_MARKER, Turn
from vila_mc.errors import DataError
from vila_mc.flow import RawImage
from vila_mc.serving.limits import Limits
from vila_mc.serving.refusal import RefusedError

_SYSTEM = ("system", "developer")
_KNOWN = ("role", "content", "name")
"""Keys of a message; a name changes nothing. Others may be there, but empty."""
_OF_IMAGE = {"url", "detail"}
"""Of an image; it is seen as in training, whatever detail is asked for."""


@dataclass(frozen=True, slots=True)
class Said:
    """A conversation whose next answer is asked for."""

    question: str
    """With an ``<image>`` marker for each of its images, unless they stand in front."""
    images: tuple[RawImage, ...]
    """Of the question."""
    earlier: tuple[Turn, ...]
    """What was said before, user and assistant in turn."""
    earlier_images: tuple[RawImage, ...]
    system: str | None


def read_messages(messages: Any, limits: Limits) -> Said:
    """Check and read the messages of a request. Raises RefusedError."""
    if not isinstance(messages, list) or not messages:
        raise RefusedError("messages must be a list of at least one message", param="messages")
    if len(messages) > limits.messages:
        raise RefusedError(
            f"there are {len(messages)} messages; {limits.messages} are allowed", param="messages"
        )
    reader = _Reader(limits)
    read = [reader.message(one, f"messages[{at}]") for at, one in enumerate(messages)]
    system = None
    if read[0].role in _SYSTEM:
        system, read = read[0].text, read[1:]
    roles = [one.role for one in read]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or len(roles) % 2 == 0:
        raise RefusedError(
            f"the roles are {', '.join(one.role for one in read) or 'none'}, behind a system "
            "message if there is one. A conversation goes user, assistant, user and so on, and "
            "ends with the user",
            param="messages",
        )
    *earlier, last = read
    turns = [Turn("user" if one.role == "user" else "assistant", one.text) for one in earlier]
    before = [image for one in earlier for image in one.images]
    return Said(last.text, last.images, tuple(turns), tuple(before), system)


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    text: str
    images: tuple[RawImage, ...]


class _Reader:
    """Reads messages, and counts what they take together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._characters = self._images = self._pixels = 0

    def message(self, given: Any, where: str) -> _Message:
        """One message. Raises RefusedError."""
        if not isinstance(given, dict):
            raise RefusedError(f"{where} is no object", param=where)
        role = given.get("role")
        if role not in ("user", "assistant", *_SYSTEM):
            raise RefusedError(
                f"the role {str(role)[:40]!r} is not known; user, assistant and system are",
                param=f"{where}.role",
            )
        unknown = [key for key, value in given.items() if key not in _KNOWN and value]
        if unknown:
            raise RefusedError(f"{unknown[0][:40]!r} of a message is not known", param=where)
        text, images = self._content(given.get("content"), f"{where}.content")
        if images and role != "user":
            raise RefusedError("only a user's message may have images", param=where)
        if not text.strip():
            raise RefusedError("a message is empty", param=where)
        return _Message(role, text, tuple(images))

    def _content(self, content: Any, where: str) -> tuple[str, list[RawImage]]:
        if isinstance(content, str):
            return self._text(content, where), []
        if not isinstance(content, list):
            raise RefusedError("the content is neither a text nor a list of parts", param=where)
        parts: list[str | RawImage] = []
        for at, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                parts.append(self._text(part.get("text"), f"{where}[{at}].text"))
            elif kind == "image_url":
                parts.append(self._image(part.get("image_url"), f"{where}[{at}].image_url"))
            else:
                raise RefusedError(
                    f"the part type {str(kind)[:40]!r} is not known; text and image_url are",
                    param=f"{where}[{at}].type",
                )
        return _joined(parts, where), [part for part in parts if isinstance(part, RawImage)]

    def _text(self, text: Any, where: str) -> str:
        if not isinstance(text, str):
            raise RefusedError("a text is no string", param=where)
        self._characters += len(text)
        if self._characters > self._limits.characters:
            raise RefusedError(
                f"the texts have more than {self._limits.characters:,} characters", param=where
            )
        try:
            check_unicode(text)
        except DataError as error:
            raise RefusedError(str(error), param=where) from None
        return text

    def _image(self, given: Any, where: str) -> RawImage:
        url = given.get("url") if isinstance(given, dict) else given
        if isinstance(given, dict) and (unknown := given.keys() - _OF_IMAGE):
            raise RefusedError(f"{min(unknown)[:40]!r} of an image is not known here", param=where)
        if not isinstance(url, str) or not url.startswith("data:"):
            raise RefusedError(
                "an image must be a data: URL in base64; this server opens no addresses and no "
                "files",
                param=where,
            )
        self._images += 1
        if self._images > self._limits.images:
            raise RefusedError(f"there are more than {self._limits.images} images", param=where)
        kind, _, encoded = url.partition(",")
        try:
            if not kind.lower().endswith(";base64"):
                raise ValueError
            data = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise RefusedError("an image's data: URL is not in base64", param=where) from None
        name = f"image {self._images} of the request"
        try:
            width, height = open_image(data, name).size
        except DataError as error:
            raise RefusedError(str(error), param=where) from None
        self._pixels += width * height
        if self._pixels > self._limits.pixels:
            raise RefusedError(
                f"the images have more than {self._limits.pixels:,} pixels together", param=where
            )
        return RawImage(data, name)


def _joined(parts: Sequence[str | RawImage], where: str) -> str:
    """The text of a message: images stand where its own markers are, or else where their parts are.

    Texts side by side stand on lines of their own.
    """
    texts = [part for part in parts if isinstance(part, str)]
    markers = sum(text.count(IMAGE_MARKER) for text in texts)
    if not markers:
        text, was_text = "", False
        for part in parts:
            is_text = isinstance(part, str)
            text += ("\n" if was_text and is_text else "") + (
                part if isinstance(part, str) else IMAGE_MARKER
            )
            was_text = is_text
        return text
    if markers != len(parts) - len(texts):
        raise RefusedError(
            f"the text has {markers} {IMAGE_MARKER} markers but {len(parts) - len(texts)} images. "
            "Put one marker where each image stands, or none, and they stand where their parts are",
            param=where,
        )
    return "\n".join(texts)

"""Instruction data in LLaVA's JSON: an array, or JSON Lines.

Each record holds ``conversations: [{from: human|gpt, value}]`` and, for images, ``image`` (one
name) or ``images`` (a list), with one ``<image>`` marker in the human turns per image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vila_mc.data.conversation import IMAGE_MARKER, TemplateName, Turn, conversation_parts
from vila_mc.data.sources.records import (
    Record,
    Rejected,
    RejectionError,
    image_part,
    read_samples,
)
from vila_mc.errors import DataError
from vila_mc.flow import RawSample


def read_conversations(
    files: Sequence[Path], images: Path, template: TemplateName
) -> Iterator[RawSample | Rejected]:
    """One sample per conversation; only the assistant's words are trained.

    Args:
        files: ``.json`` (array), ``.jsonl`` or ``.jsonl.gz`` files.
        images: folder that image names are relative to.
        template: how turns become text.

    Raises:
        DataError: a file cannot be read.
    """

    def parse(record: Record, origin: str) -> RawSample:
        turns = _turns(record)
        parts = [image_part(images, name) for name in _image_names(record)]
        try:
            return RawSample(conversation_parts(template, turns, parts), origin)
        except DataError as error:
            raise RejectionError("bad conversation", str(error)) from None

    return read_samples(files, parse)


def _image_names(record: Record) -> list[object]:
    if "image" in record and "images" in record:
        raise RejectionError("bad conversation", "both 'image' and 'images' are given")
    value = record.get("images", record.get("image"))
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _turns(record: Record) -> list[Turn]:
    said = record.get("conversations")
    if not isinstance(said, list):
        raise RejectionError("missing key", "there is no list under 'conversations'")
    return [_turn(entry) for entry in said]


def _turn(entry: object) -> Turn:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        raise RejectionError("bad conversation", f"{str(entry)[:80]} has no text under 'value'")
    text, speaker = entry["value"], entry.get("from")
    if speaker == "human":
        return Turn("user", text)
    if speaker != "gpt":
        raise RejectionError("bad conversation", f"'from' is {speaker!r}; it must be human or gpt")
    if IMAGE_MARKER in text:
        raise RejectionError("bad conversation", f"a gpt turn holds {IMAGE_MARKER}")
    return Turn("assistant", text)

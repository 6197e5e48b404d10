"""Instruction data: LLaVA's JSON, ShareGPT-like messages, questions with answers.

=========================================================  ====================================
record                                                     who wrote it
=========================================================  ====================================
``conversations: [{from: human or gpt, value}]``           LLaVA, ShareGPT
``messages: [{role: user or assistant, content}]``         OpenAI-like, Hugging Face
``question``, ``answer``                                   FLAN-like
=========================================================  ====================================

Images are named under ``image`` (one) or ``images`` (a list), with one ``<image>`` marker in the
user's turns per image. ``video`` names the frames of a video, as a list of images or as a folder of
them; ``<video>`` in a user's turn stands for all of them. A content may also be a list of
``{type: text, text}`` and ``{type: image}``, where no text is ever a marker.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vila_mc.data.chat_templates import (
    IMAGE_MARKER,
    Template,
    Turn,
    conversation_pieces,
    find_template,
)
from vila_mc.data.sources.record_files import ImageRecordSource
from vila_mc.data.sources.records import Record, RejectionError, missing_key, require_string
from vila_mc.errors import DataError
from vila_mc.flow import RawSample

VIDEO_MARKER = "<video>"
MOST_FRAMES = 8
"""Frames of a video that VILA looks at."""

_FRAMES = (".jpg", ".jpeg", ".png", ".webp")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SYSTEM = "system"


@dataclass(frozen=True)
class ConversationSource(ImageRecordSource):
    """One sample per conversation; only the assistant's words are trained."""

    template: Template = field(default_factory=lambda: find_template("vicuna_v1"))
    """How turns become text."""
    most_frames: int = MOST_FRAMES
    """Frames of a video that are kept, spread evenly from the first to the last."""

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample]:
        """See ``RecordSource.parse``."""
        names = _listed(record, "image", "images")
        frames = self._frames(record)
        system, turns = _turns(record, names, len(frames))
        shown = [self.images.find(name) for name in (*names, *frames)]
        try:
            yield RawSample(conversation_pieces(self.template, turns, shown, system), place)
        except DataError as error:
            raise RejectionError("bad conversation", str(error)) from None

    def _frames(self, record: Record) -> list[Any]:
        value = record.get("video")
        if value is None:
            return []
        if isinstance(value, str):
            if Path(value).suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif"):
                raise RejectionError(
                    "video file", f"{value[:80]}: give its frames as images, or their folder"
                )
            value = [name for name in self.images.folder(value) if name.lower().endswith(_FRAMES)]
        if not isinstance(value, list) or not value:
            raise RejectionError("bad conversation", "'video' names no frames")
        return _spread(value, self.most_frames)


def _spread(frames: list[Any], most: int) -> list[Any]:
    if len(frames) <= most:
        return frames
    if most == 1:
        return [frames[len(frames) // 2]]
    return [frames[round(n * (len(frames) - 1) / (most - 1))] for n in range(most)]


def _listed(record: Record, one: str, many: str) -> list[object]:
    if one in record and many in record:
        raise RejectionError("bad conversation", f"both {one!r} and {many!r} are given")
    value = record.get(many, record.get(one))
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _turns(record: Record, names: list[object], num_frames: int) -> tuple[str | None, list[Turn]]:
    """(system text if there is one, turns with one image marker per image).

    Images that stand within contents are added to ``names``.
    """
    said = _said(record)
    system: str | None = None
    if said and said[0][0] == _SYSTEM:
        system = _text_alone(said[0][1])
        said = said[1:]
    turns = []
    for speaker, content in said:
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role == "user":
            turns.append(Turn("user", _user_text(content, names)))
        elif role == "assistant":
            text = _text_alone(content)
            if IMAGE_MARKER in text:
                raise RejectionError("bad conversation", f"a gpt turn holds {IMAGE_MARKER}")
            turns.append(Turn("assistant", text))
        else:
            allowed = "human, gpt, user or assistant, and system only before them"
            raise RejectionError("bad conversation", f"{str(speaker)[:40]!r} speaks, not {allowed}")
    return system, _with_frames(turns, num_frames)


def _said(record: Record) -> list[tuple[object, object]]:
    """(speaker, content) of each turn."""
    for key, speaker, content in (
        ("conversations", "from", "value"),
        ("messages", "role", "content"),
    ):
        if key in record:
            entries = record[key]
            if not isinstance(entries, list):
                raise missing_key(record, f"list under {key!r}")
            return [_entry(entry, speaker, content) for entry in entries]
    if "question" in record and "answer" in record:
        return [
            (name, require_string(record, key))
            for name, key in (("user", "question"), ("assistant", "answer"))
        ]
    raise missing_key(record, "'conversations', 'messages', or 'question' with 'answer'")


def _entry(entry: object, speaker: str, content: str) -> tuple[object, object]:
    if not isinstance(entry, dict) or not isinstance(entry.get(content), str | list):
        raise RejectionError("bad conversation", f"{str(entry)[:80]} has no text under {content!r}")
    return entry.get(speaker), entry[content]


def _text_alone(content: object) -> str:
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    for item in content:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise RejectionError("bad conversation", "only the user may show images")
    return "".join(item["text"] for item in content)


def _user_text(content: object, names: list[object]) -> str:
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    text = ""
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text" and isinstance(item.get("text"), str):
            if IMAGE_MARKER in item["text"] or VIDEO_MARKER in item["text"]:
                raise RejectionError(
                    "bad conversation", "a text beside {type: image} holds a literal marker"
                )
            text += item["text"]
        elif kind == "image":
            text += IMAGE_MARKER
            if "image" in item:
                names.append(item["image"])
        else:
            raise RejectionError("bad conversation", f"{str(item)[:80]} is neither text nor image")
    return text


def _with_frames(turns: Sequence[Turn], num_frames: int) -> list[Turn]:
    """Put a marker per frame in place of ``<video>``; images and a video do not mix."""
    markers = sum(turn.text.count(VIDEO_MARKER) for turn in turns if turn.role == "user")
    if not num_frames:
        return list(turns)
    images = sum(turn.text.count(IMAGE_MARKER) for turn in turns if turn.role == "user")
    if markers != 1 or images:
        raise RejectionError(
            "bad conversation",
            f"a 'video' takes one {VIDEO_MARKER} and no {IMAGE_MARKER} in the user's turns; "
            f"there are {markers} and {images}",
        )
    expanded = "\n".join([IMAGE_MARKER] * num_frames)
    return [
        Turn(turn.role, turn.text.replace(VIDEO_MARKER, expanded)) if turn.role == "user" else turn
        for turn in turns
    ]

"""Instruction data: LLaVA's JSON, ShareGPT-like messages, questions with answers.

=========================================================  ====================================
record                                                     who wrote it
=========================================================  ====================================
``conversations: [{from: human or gpt, value}]``           LLaVA, ShareGPT
``messages: [{role: user or assistant, content}]``         OpenAI-like, Hugging Face
``question``, ``answer``                                   FLAN-like
=========================================================  ====================================

Images are named under ``image`` (one) or ``images`` (a list), with one ``<image>`` marker in the
user's turns per image. ``video`` names a video file, or its frames, as a list of images or as a
folder of them; ``<video>`` in a user's turn stands for all of them. A marker of nothing, or one in
an assistant's turn, rejects the record: a marker cannot be said as text. A content may also be a
list of ``{type: text, text}`` and ``{type: image}``, where no text may hold a marker.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from vila_mc.config.options import Argument
from vila_mc.data.chat_templates import (
    DEFAULT_TEMPLATE,
    TEMPLATES,
    AnyTemplate,
    conversation_pieces,
    find_template,
    template_words,
)
from vila_mc.data.image_codec import ENDINGS
from vila_mc.data.sources.image_files import find_image
from vila_mc.data.sources.options import ImageOptions
from vila_mc.data.sources.record_files import ImageRecordSource
from vila_mc.data.sources.records import (
    NOT_READ,
    Record,
    Rejected,
    RejectionError,
    is_given,
    missing_key,
    refuse_other_case,
    require_string,
)
from vila_mc.data.sources.said import SYSTEM, Said, content_text, entry_of, user_text
from vila_mc.data.sources.video import (
    CONTAINERS,
    DEFAULT_MAX_SECONDS,
    MOST_FRAMES,
    Frame,
    FramePolicy,
    is_video,
    read_frames,
    spread,
)
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import IMAGE_MARKER, VIDEO_MARKER, Turn
from vila_mc.errors import DataError
from vila_mc.flow import RawImage, RawSample

_NOT_READ = ("tools", "functions", "videos", "audio", "audios", "objects")
"""Keys with a part of the conversation that no template writes here."""
_KEYS = (SYSTEM, "image", "images", "video", "conversations", "messages")
"""Keys that decide what becomes of a record."""
_OTHER_VIDEOS = (".avi", ".gif", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".ogv", ".3gp")
_PLAYLISTS = (".m3u8", ".m3u", ".mpd")


@dataclass(frozen=True)
class ConversationSource(ImageRecordSource):
    """One sample per conversation; only the assistant's words are trained."""

    template: AnyTemplate = field(default_factory=lambda: find_template(DEFAULT_TEMPLATE))
    """How turns become text."""
    frames: FramePolicy = field(default_factory=FramePolicy)
    """Which frames of a video are kept."""
    skips_leading_answers: bool = False
    """Whether what is said before the user says anything is left out."""
    places_images_first: bool = False
    """Whether images stand in front where no turn says where they do."""
    writes_times: bool = False
    """Whether the time of each frame of a video file stands in front of it."""

    def parse(self, record: Record, file: Path, place: int | str) -> Iterator[RawSample | Rejected]:
        """See ``RecordSource.parse``."""
        not_read = (key for key in record if key.strip().lower() in _NOT_READ)
        if lost := [key for key in not_read if is_given(record, key)]:
            raise RejectionError(
                "not supported", f"{lost[0][:40]!r} is not read, and would be lost"
            )
        refuse_other_case(record, _KEYS)
        frames, others = self._frames(record)
        system, turns, names = _turns(record)
        turns = self._arranged(turns, len(names), [mark for mark, _ in frames])
        shown = [find_image(self.images, name) for name in names]
        shown += [frame for _, frame in frames]
        try:
            pieces = conversation_pieces(self.template, turns, shown, system)
            own = template_words(self.template, pieces, turns, system)
            yield RawSample(pieces, place, own)
        except DataError as error:
            raise RejectionError("bad conversation", str(error)) from None
        if others:
            detail = f"{len(others):,} files among the frames are no images: {', '.join(others)}"
            yield RejectionError(NOT_READ, detail).at(file, place)

    def _arranged(self, turns: list[Turn], num_images: int, frames: list[str]) -> list[Turn]:
        if self.skips_leading_answers:
            turns = list(dropwhile(lambda turn: turn.role == "assistant", turns))
        if frames:
            return _with_frames(turns, frames)
        if lone := _markers(turns, VIDEO_MARKER):
            raise RejectionError(
                "bad conversation",
                f"there are {lone} {VIDEO_MARKER} markers but no 'video'. Name it; "
                f"{_as_text(VIDEO_MARKER)}",
            )
        asked = [turn for turn in turns if turn.role != "assistant"]
        if self.places_images_first and asked and not any(IMAGE_MARKER in t.text for t in asked):
            first = turns.index(asked[0])
            turns = [*turns]
            turns[first] = asked[0].with_images_first(num_images)
        return turns

    def _frames(self, record: Record) -> tuple[list[tuple[str, RawImage]], list[str]]:
        """The frames that are kept, each behind its marker; names of files in their folder that are
        none."""
        value = record.get("video")
        if value is None or (value in ("", []) and VIDEO_MARKER not in str(record)):
            return [], []
        others: list[str] = []
        if isinstance(value, str) and value:
            if is_video(value):
                kept = read_frames(self.images.find(value), self.frames)
                return [(self._marker(frame), frame.image) for frame in kept], []
            if value.lower().endswith(_OTHER_VIDEOS):
                raise RejectionError(
                    "video file",
                    f"{value[:80]}: give {', '.join(CONTAINERS)}, or frames as images, or their "
                    "folder",
                )
            if value.lower().endswith(_PLAYLISTS):
                raise RejectionError(
                    "video file",
                    f"{value[:80]}: a playlist names other files, which are not followed; give the "
                    f"video itself as {', '.join(CONTAINERS)}",
                )
            names = self.images.folder(value)
            value = [name for name in names if name.lower().endswith(ENDINGS)]
            others = [name for name in names if not name.lower().endswith(ENDINGS)]
        if not isinstance(value, list) or not value:
            raise RejectionError("bad conversation", "'video' names no frames")
        if self.writes_times or self.frames.fps is not None:
            raise RejectionError(
                "bad conversation",
                "'video' names images, of which nobody knows when they are shown (the options fps "
                "and frame_times)",
            )
        kept = spread(value, self.frames.most)
        return [(IMAGE_MARKER, find_image(self.images, name)) for name in kept], others

    def _marker(self, frame: Frame) -> str:
        return f"<{frame.seconds:.1f} seconds>{IMAGE_MARKER}" if self.writes_times else IMAGE_MARKER


def _named(record: Record) -> list[object]:
    """Images that the record names outside of its turns."""
    if is_given(record, "image") and is_given(record, "images"):
        raise RejectionError("bad conversation", "both 'image' and 'images' are given")
    value = record["images"] if is_given(record, "images") else record.get("image")
    if value in (None, "", [], {}):
        return []
    return list(value) if isinstance(value, list) else [value]


def _turns(record: Record) -> tuple[str | None, list[Turn], list[object]]:
    """(system text if there is one, turns with one marker per image, images in that order)."""
    said = _said(record)
    system = require_string(record, SYSTEM) if is_given(record, SYSTEM) else None
    if said and said[0].role == SYSTEM:
        text = content_text(said[0].content)
        if system is not None and text.strip() and text.strip() != system.strip():
            raise RejectionError("bad conversation", "there are two system texts")
        system = text if text.strip() else system
        said = said[1:]
    turns: list[Turn] = []
    inline: list[object] = []  # in the order of markers; None for those that the record names
    for one in said:
        if one.role == SYSTEM:
            raise RejectionError("bad conversation", "a system text stands behind other turns")
        if one.role == "assistant":
            text = content_text(one.content)
            if marker := next((one for one in (IMAGE_MARKER, VIDEO_MARKER) if one in text), None):
                raise RejectionError(
                    "bad conversation", f"a gpt turn holds {marker}; {_as_text(marker)}"
                )
            turns.append(Turn("assistant", text, one.is_trained))
        else:
            turns.append(Turn(one.role, user_text(one.content, inline)))
    return system, turns, _in_order(inline, _named(record))


def _in_order(inline: Sequence[object], named: Sequence[object]) -> list[object]:
    if sum(image is None for image in inline) != len(named):  # the number of markers will be wrong
        return [*named, *(image for image in inline if image is not None)]
    waiting = iter(named)
    return [next(waiting) if image is None else image for image in inline]


def _said(record: Record) -> list[Said]:
    found = [_listed(record, key) for key in ("conversations", "messages") if is_given(record, key)]
    if len(found) > 1 and found[0] != found[1]:
        raise RejectionError("bad conversation", "'conversations' and 'messages' differ")
    if found:
        return found[0]
    if is_given(record, "question") and is_given(record, "answer"):
        return [
            Said("user", require_string(record, "question")),
            Said("assistant", require_string(record, "answer")),
        ]
    raise missing_key(record, "'conversations', 'messages', or 'question' with 'answer'")


def _listed(record: Record, key: str) -> list[Said]:
    entries = record[key]
    if not isinstance(entries, list):
        raise missing_key(record, f"list under {key!r}")
    return [entry_of(entry) for entry in entries]


def _with_frames(turns: Sequence[Turn], frames: Sequence[str]) -> list[Turn]:
    """Put the marker of each frame in place of ``<video>``; images and a video do not mix."""
    markers, images = _markers(turns, VIDEO_MARKER), _markers(turns, IMAGE_MARKER)
    if markers != 1 or images:
        raise RejectionError(
            "bad conversation",
            f"a 'video' takes one {VIDEO_MARKER} and no {IMAGE_MARKER} in the user's turns; "
            f"there are {markers} and {images}",
        )
    expanded = "\n".join(frames)
    return [
        replace(turn, text=turn.text.replace(VIDEO_MARKER, expanded))
        if turn.role != "assistant"
        else turn
        for turn in turns
    ]


def _markers(turns: Sequence[Turn], marker: str) -> int:
    """How often it stands where a user's words do."""
    return sum(turn.text.count(marker) for turn in turns if turn.role != "assistant")


def _as_text(marker: str) -> str:
    """What to do with a marker that is meant as it is written, such as a tag of HTML."""
    return f"as text, write it another way, such as < {marker[1:-1]} >"


@dataclass(frozen=True, kw_only=True)
class ConversationsOptions(ImageOptions):
    """LLaVA JSON or JSON Lines, ShareGPT-like messages, question and answer."""

    template: Annotated[str, Argument("NAME")] = DEFAULT_TEMPLATE
    """plain, vicuna_v1, llama_2, llama_3, chatml, tokenizer (its own), or a YAML file."""
    max_frames: PositiveInt = MOST_FRAMES
    """Frames of a video that are kept, evenly spread."""
    fps: Annotated[float | None, Argument("FPS")] = None
    """Of a video file, frames of a second that max_frames are spread over (default: all)."""
    max_seconds: Annotated[float, Argument("SECONDS")] = DEFAULT_MAX_SECONDS
    """Longest video file that is accepted."""
    frame_times: bool = False
    """Write in front of each frame of a video file when it is shown, as <3.0 seconds>."""
    skip_leading_answers: bool = False
    """Leave out what is said before the user says anything (default: reject the conversation)."""
    place_images_first: bool = False
    """Put images in front where no turn says where they stand (default: reject)."""

    def source(self) -> ConversationSource:
        """See ``RawOptions.source``."""
        return ConversationSource(
            *self.files_and_images(),
            self._template(),
            FramePolicy(self.max_frames, self.fps, self.max_seconds, self.max_pixels),
            self.skip_leading_answers,
            self.place_images_first,
            self.frame_times,
        )

    def facts(self) -> dict[str, Any]:
        """See ``RawOptions.facts``."""
        is_name = self.template in TEMPLATES and self.template != "tokenizer"
        template = self.template if is_name else self._template().describe()
        facts = super().facts() | {"template": template}
        # What sets of before they were there were made with.
        unsaid = {"fps": None, "max_seconds": DEFAULT_MAX_SECONDS, "frame_times": False}
        return {name: value for name, value in facts.items() if unsaid.get(name, ...) != value}

    def _template(self) -> AnyTemplate:
        return find_template(self.template, Tokenizer(self.tokenizer))

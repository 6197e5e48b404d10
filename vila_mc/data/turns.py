"""What is said in a conversation, and where its images stand, before any template is applied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vila_mc.errors import DataError

IMAGE_MARKER = "<image>"
"""Where an image stands in a user's turn. Elsewhere it is plain text."""
VIDEO_MARKER = "<video>"
"""The same of the frames of a video, before they are known."""

Role = Literal["user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said."""

    role: Role
    """What a tool answers stands where a user's words do."""
    text: str
    is_trained: bool = True
    """Whether an assistant's turn is learned."""

    def with_images_first(self, number: int) -> "Turn":
        """The turn with ``number`` images in front, unless it says itself where images stand."""
        if IMAGE_MARKER in self.text:
            return self
        return replace(self, text=f"{IMAGE_MARKER}\n" * number + self.text)


def asked(text: str, num_images: int) -> Turn:
    """A user's turn about some images: without an ``<image>`` in it they stand in front.

    Raises:
        DataError: there are such markers, but not one for each image.
    """
    turn = Turn("user", text).with_images_first(num_images)
    markers = turn.text.count(IMAGE_MARKER)
    if markers != num_images:
        raise DataError(
            f"the question has {markers} {IMAGE_MARKER} markers but {num_images} images. Put one "
            "marker where each image stands, or none, and they stand in front."
        )
    return turn


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse what is no conversation.

    Raises:
        DataError: turns do not alternate, one is empty, or none is trained.
    """
    roles = [turn.role for turn in turns]
    asked = ["user" if role == "tool" else role for role in roles]
    if not roles or len(roles) % 2 or asked != ["user", "assistant"] * (len(roles) // 2):
        hint = ""
        if asked[:1] == ["assistant"]:
            hint = " The option skip_leading_answers leaves out what is said before the user."
        raise DataError(
            f"the turns are {', '.join(roles) or 'none'}. A conversation goes user, assistant, "
            f"user, assistant and so on, and ends with the assistant.{hint}"
        )
    for number, turn in enumerate(turns, start=1):
        if not turn.text.strip():
            raise DataError(f"turn {number} ({turn.role}) is empty. Remove it or the conversation.")
    if not any(turn.is_trained for turn in turns if turn.role == "assistant"):
        raise DataError("no answer in it is trained. Remove the conversation.")


def count_markers(asked: Sequence[Turn], images: Sequence[object]) -> None:
    """Refuse a number of images that is not that of their markers. Raises DataError."""
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in asked)
    if markers != len(images):
        hint = "" if markers else "; the option place_images_first puts them in front"
        raise DataError(
            f"there are {markers} {IMAGE_MARKER} markers but {len(images)} images. Put one marker "
            f"into the user's turns for each image{hint}."
        )


def user_chunks(text: str) -> list[str]:
    """Text before, between and after the markers of a user's turn.

    A newline follows every image that is not the last of the turn, a space keeps words and the next
    image apart, and none of them stands at either end.

    Source:
        ``preprocess_multimodal`` of NVlabs/VILA, llava/data/dataset.py.
    """
    first, *others = (chunk.strip() for chunk in text.split(IMAGE_MARKER))
    if not others:
        return [first]
    between = [f"\n{chunk} " for chunk in others[:-1]]
    return [f"{first} " if first else "", *between, f"\n{others[-1]}" if others[-1] else ""]

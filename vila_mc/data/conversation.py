"""Conversation templates: turns become text and image parts, and only answers are trained.

Every part is tokenised on its own, and SentencePiece puts its dummy space before each. So a prompt
ends at ``ASSISTANT:`` without a space, and the answer is a part of its own that starts without one:
the tokens are those of ``ASSISTANT: answer``. A prompt at evaluation time is built by the same code
as the prefix in training (``prompt``), so the two cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vila_mc.errors import DataError
from vila_mc.flow import ImagePart, TextPart

TemplateName = Literal["plain", "vicuna_v1", "llama_2"]
TEMPLATES: tuple[TemplateName, ...] = get_args(TemplateName)

IMAGE_MARKER = "<image>"
"""Where an image stands in a user's turn. Elsewhere it is plain text."""

Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template puts around a user's turn."""

    system: str
    """Before the first turn, after ``open_first``."""
    open_first: str
    open_next: str
    """Before each later turn. The EOS of the last answer stands in front of it."""
    close: str


_FRAMES = {
    "vicuna_v1": _Frame(
        open_first="",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ",
        open_next="USER: ",
        close=" ASSISTANT:",
    ),
    "llama_2": _Frame(
        open_first="[INST] <<SYS>>\n",
        system="You are a helpful language and vision assistant. You are able to understand the "
        "visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.\n<</SYS>>\n\n",
        open_next="[INST] ",
        close=" [/INST]",
    ),
}


def conversation_parts(
    template: TemplateName, turns: Sequence[Turn], images: Sequence[ImagePart]
) -> tuple[Part, ...]:
    """Parts of a whole conversation; the assistant's turns, and the EOS after each, are trained.

    ``plain`` drops the user's words: the image alone is the prompt, and the caption ends with a
    trained newline instead of EOS.

    Args:
        template: one of ``TEMPLATES``.
        turns: user and assistant in turn, the user first and the assistant last.
        images: one per ``<image>`` marker in the user's turns, in order.

    Raises:
        DataError: turns do not alternate, one is empty, markers and images differ in number, or
            ``plain`` has no image.

    Source:
        VILA, arXiv 2312.07533; LLaVA, arXiv 2310.03744 (vicuna_v1, plain); Llama 2, arXiv
        2307.09288, appendix A.3.3 (llama_2).
    """
    _check_turns(turns)
    users = [turn.text for turn in turns if turn.role == "user"]
    counts = [text.count(IMAGE_MARKER) for text in users]
    if sum(counts) != len(images):
        raise DataError(
            f"there are {sum(counts)} {IMAGE_MARKER} markers but {len(images)} images. Put one "
            "marker into the user's turns for each image."
        )
    parts: list[Part] = []
    used = 0
    for index, (user, count) in enumerate(zip(users, counts, strict=True)):
        parts += _user_parts(template, user, images[used : used + count], is_first=index == 0)
        parts.append(_answer_part(template, turns[2 * index + 1].text))
        used += count
    return tuple(parts)


def prompt(
    template: TemplateName, question: str, images: Sequence[ImagePart] = ()
) -> tuple[Part, ...]:
    """Parts in front of the answer to one question, exactly as a model is trained with them.

    Args:
        template: one of ``TEMPLATES``.
        question: the user's words. Without ``<image>`` markers the images go in front.
        images: what is asked about.

    Raises:
        DataError: the question has markers, but not one per image; or ``plain`` has no image.
    """
    if IMAGE_MARKER not in question:
        question = f"{IMAGE_MARKER}\n" * len(images) + question
    if question.count(IMAGE_MARKER) != len(images):
        raise DataError(
            f"the question holds {question.count(IMAGE_MARKER)} {IMAGE_MARKER} markers, but "
            f"{len(images)} images are given. Use one marker per image, or none to put the images "
            "in front."
        )
    return tuple(_user_parts(template, question, images, is_first=True))


def _check_turns(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"the turns are {', '.join(roles) or 'none'}. A conversation goes user, assistant, "
            "user, assistant and so on, and ends with the assistant."
        )
    for number, turn in enumerate(turns, start=1):
        if not turn.text.strip():
            raise DataError(f"turn {number} ({turn.role}) is empty. Remove it or the conversation.")


def _user_parts(
    template: TemplateName, text: str, images: Sequence[ImagePart], *, is_first: bool
) -> list[Part]:
    if template == "plain":
        if is_first and not images:
            raise DataError(
                "the plain template is a prompt of the image alone, but there is no image. Use "
                "vicuna_v1 or llama_2 for text-only conversations."
            )
        return list(images)
    frame = _FRAMES[template]
    opening = frame.open_first + frame.system if is_first else frame.open_next
    parts: list[Part] = []
    before = opening
    for chunk, image in zip(_chunks(text), [*images, None], strict=True):
        before += chunk
        if image is not None:
            parts += [TextPart(before, is_trained=False)] if before else []
            parts.append(image)
            before = "\n"
    return [*parts, TextPart(before + frame.close, is_trained=False)]


def _chunks(text: str) -> list[str]:
    """Text before, between and after the markers; a space keeps words and the next image apart."""
    chunks = [chunk.strip() for chunk in text.split(IMAGE_MARKER)]
    return [f"{chunk} " if chunk else "" for chunk in chunks[:-1]] + chunks[-1:]


def _answer_part(template: TemplateName, text: str) -> TextPart:
    if template == "plain":
        return TextPart(text.strip() + "\n", is_trained=True)
    return TextPart(text.strip(), is_trained=True, ends_turn=True)

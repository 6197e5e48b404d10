"""Conversation templates: turns become text and image pieces, and only answers are trained.

Every piece is tokenised on its own, and SentencePiece puts its dummy space before each. So a prompt
ends at ``ASSISTANT:`` without a space, and the answer is a piece of its own that starts without
one: the tokens are those of ``ASSISTANT: answer``. A prompt at evaluation time is built by the same
code as the prefix in training (``prompt``), so the two cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import yaml

from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import RawImage, RawPiece, RawText

TemplateName = Literal["plain", "vicuna_v1", "llama_2"]
TEMPLATES: tuple[TemplateName, ...] = get_args(TemplateName)

IMAGE_MARKER = "<image>"
"""Where an image stands in a user's turn. Elsewhere it is plain text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the words of a conversation. None of it is trained."""

    system: str
    """Who the assistant is; a conversation may bring its own."""
    first: str
    """Before the first user's words; ``{system}`` in it is replaced by the system text."""
    next: str
    """Before the user's words of later turns. The EOS of the last answer stands in front of it."""
    close: str
    """After the user's words. The answer follows after a space of its own."""
    is_plain: bool = False
    """Drop the user's words: the prompt is the images alone, and a newline ends the answer."""


_BUILT_IN: dict[TemplateName, Template] = {
    "plain": Template(system="", first="", next="", close="", is_plain=True),
    "vicuna_v1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        first="{system} USER: ",
        next="USER: ",
        close=" ASSISTANT:",
    ),
    "llama_2": Template(
        system="You are a helpful language and vision assistant. You are able to understand the "
        "visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.",
        first="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        next="[INST] ",
        close=" [/INST]",
    ),
}


def find_template(name: str | Path) -> Template:
    """A built-in template by its name, or one from a YAML file.

    The file holds the keys ``first``, ``next`` and ``close``, and ``system`` if it likes: texts as
    in ``Template``.

    Raises:
        ConfigError: there is no such template, or the file is not one.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]  # type: ignore[index]
    file = Path(name)
    allowed = f"{', '.join(TEMPLATES)}, or a YAML file with first, next, close and system"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"there is no template {name}. Give {allowed}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    required = {"first", "next", "close"}
    if (
        not isinstance(values, dict)
        or not required <= values.keys() <= required | {"system"}
        or not all(isinstance(value, str) for value in values.values())
    ):
        raise ConfigError(f"{file} is not a template. Give {allowed}, each a text.")
    return Template(values.get("system", ""), values["first"], values["next"], values["close"])


def conversation_pieces(
    template: Template | TemplateName,
    turns: Sequence[Turn],
    images: Sequence[RawImage],
    system: str | None = None,
) -> tuple[RawPiece, ...]:
    """Pieces of a whole conversation; the assistant's turns, and the EOS after each, are trained.

    ``plain`` drops the user's words: the image alone is the prompt, and the caption ends with a
    trained newline instead of EOS.

    Args:
        template: a template, or the name of a built-in one.
        turns: user and assistant in turn, the user first and the assistant last.
        images: one per ``<image>`` marker in the user's turns, in order.
        system: in place of the template's own system text.

    Raises:
        DataError: turns do not alternate, one is empty, markers and images differ in number, or
            ``plain`` has no image.

    Source:
        VILA, arXiv 2312.07533; LLaVA, arXiv 2310.03744 (vicuna_v1, plain); Llama 2, arXiv
        2307.09288, appendix A.3.3 (llama_2).
    """
    template = _resolve(template)
    if system is not None:
        template = replace(template, system=system.strip())
    _check_turns(turns)
    users = [turn.text for turn in turns if turn.role == "user"]
    counts = [text.count(IMAGE_MARKER) for text in users]
    if sum(counts) != len(images):
        raise DataError(
            f"there are {sum(counts)} {IMAGE_MARKER} markers but {len(images)} images. Put one "
            "marker into the user's turns for each image."
        )
    pieces: list[RawPiece] = []
    used = 0
    for index, (user, count) in enumerate(zip(users, counts, strict=True)):
        pieces += _user_pieces(template, user, images[used : used + count], is_first=index == 0)
        pieces.append(_answer(template, turns[2 * index + 1].text))
        used += count
    return tuple(pieces)


def prompt(
    template: Template | TemplateName, question: str, images: Sequence[RawImage] = ()
) -> tuple[RawPiece, ...]:
    """Pieces in front of the answer to one question, exactly as a model is trained with them.

    Args:
        template: a template, or the name of a built-in one.
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
    return tuple(_user_pieces(_resolve(template), question, images, is_first=True))


def _resolve(template: Template | TemplateName) -> Template:
    return template if isinstance(template, Template) else _BUILT_IN[template]


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


def _user_pieces(
    template: Template, text: str, images: Sequence[RawImage], *, is_first: bool
) -> list[RawPiece]:
    if template.is_plain:
        if is_first and not images:
            raise DataError(
                "the plain template is a prompt of the image alone, but there is no image. Use "
                "vicuna_v1 or llama_2 for text-only conversations."
            )
        return list(images)
    before = template.first.replace("{system}", template.system) if is_first else template.next
    pieces: list[RawPiece] = []
    for chunk, image in zip(_chunks(text), [*images, None], strict=True):
        before += chunk
        if image is not None:
            pieces += [RawText(before, is_trained=False)] if before else []
            pieces.append(image)
            before = "\n"
    return [*pieces, RawText(before + template.close, is_trained=False)]


def _chunks(text: str) -> list[str]:
    """Text before, between and after the markers; a space keeps words and the next image apart."""
    chunks = [chunk.strip() for chunk in text.split(IMAGE_MARKER)]
    return [f"{chunk} " if chunk else "" for chunk in chunks[:-1]] + chunks[-1:]


def _answer(template: Template, text: str) -> RawText:
    if template.is_plain:
        return RawText(text.strip() + "\n", is_trained=True)
    return RawText(text.strip(), is_trained=True, ends_turn=True)

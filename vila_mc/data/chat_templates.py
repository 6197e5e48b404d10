"""Conversation templates: turns become text and image pieces, and only answers are trained.

A prompt at evaluation time is built by the same code as the prefix in training (``prompt``), so the
two cannot differ. For that, a space at the end of the prompt is left to the answer, as tokenizers
do: the pieces are ``ASSISTANT:`` and `` answer``.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from vila_mc.data.tokenizer_template import TokenizerTemplate, read_tokenizer_template
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn, asked, check_turns, count_markers, user_chunks
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import RawImage, RawPiece, RawText, RawToken
from vila_mc.foreign_files import ForeignFileError, read_foreign

TemplateName = Literal["plain", "vicuna_v1", "llama_2", "llama_3", "chatml"]

DEFAULT_TEMPLATE: TemplateName = "vicuna_v1"
"""What conversations are written with unless another template is named."""

_LARGEST_BYTES = 2**20
"""Of a template's file."""

_EOS, _BOS, _SYSTEM = "{eos}", "{bos}", "{system}"
_TOKENIZER = "tokenizer"
_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the words of a conversation.

    Special tokens of the tokenizer are written as they are; ``{bos}`` and ``{eos}`` stand for BOS
    and EOS. BOS in front of everything is not written, but there where the tokenizer has one.
    """

    first: str
    """Before the first user's words; ``{system}`` in it is replaced by the system text."""
    next: str
    """Before the user's words of later turns."""
    close: str
    """After the user's words. The answer follows directly."""
    system: str = ""
    """Who the assistant is; a conversation may bring its own."""
    end: str = _EOS
    """After the answer, and trained like it."""
    after: str = ""
    """After ``end``, and not trained."""
    is_plain: bool = False
    """Drop the user's words: the prompt is the images alone."""
    special: tuple[str, ...] = ()
    """Special tokens in these texts."""

    def describe(self) -> dict[str, Any]:
        """For the manifest of a dataset, as JSON takes it."""
        return asdict(self) | {"special": list(self.special)}

    def stop_tokens(self) -> tuple[str, ...]:
        """Special tokens, besides EOS, that end an answer."""
        return tuple(token for token in self.special if token in self.end)

    def own_text(self) -> str:
        """All its words, special tokens left out."""
        texts = (self.system, self.first, self.next, self.close, self.end, self.after)
        left_out = map(re.escape, (_SYSTEM, _EOS, _BOS, *self.special))
        return re.sub("|".join(left_out), " ", "\n".join(texts))


BUILT_IN: dict[TemplateName, Template] = {
    "plain": Template(first="", next="", close="", end="\n", is_plain=True),
    "vicuna_v1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        first="{system} USER: ",
        next="USER: ",
        close=" ASSISTANT: ",
    ),
    "llama_2": Template(
        system=_LLAVA_SYSTEM,
        first="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        next="{bos}[INST] ",
        close=" [/INST] ",
        end=" {eos}",
    ),
    "llama_3": Template(
        system=_LLAVA_SYSTEM,
        first="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        next="<|start_header_id|>user<|end_header_id|>\n\n",
        close="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "chatml": Template(
        system="You are a helpful assistant.",
        first="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        next="<|im_start|>user\n",
        close="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        special=("<|im_start|>", "<|im_end|>"),
    ),
}
TEMPLATES = (*BUILT_IN, _TOKENIZER)
"""What may be asked for by name."""
AnyTemplate = Template | TokenizerTemplate


def find_template(name: str | Path, tokenizer: Tokenizer | None = None) -> AnyTemplate:
    """A template by its name, or one from a YAML file with the texts of ``Template``.

    Args:
        name: one of ``TEMPLATES``, or a file.
        tokenizer: what it will be used with; ``tokenizer`` is its own chat template. Without one,
            files hold no special tokens.

    Raises:
        ConfigError: there is no such template, the file is not one, or the tokenizer lacks what
            it needs.
    """
    if name == _TOKENIZER:
        if tokenizer is None:
            raise ConfigError("the template tokenizer needs a tokenizer. Give one.")
        return read_tokenizer_template(tokenizer)
    known = () if tokenizer is None else tokenizer.special_tokens()
    if name in BUILT_IN:
        template = BUILT_IN[name]  # type: ignore[index]
        if tokenizer is not None and (lacking := set(template.special) - set(known)):
            raise ConfigError(
                f"the template {name} needs the tokens {', '.join(sorted(lacking))}, which "
                f"{tokenizer.path} does not have. Give a tokenizer with them or another template.",
                option="template",
            )
        return template
    template = _read(Path(name))
    texts = "".join((template.first, template.next, template.close, template.end, template.after))
    return replace(template, special=tuple(token for token in known if token in texts))


def _read(file: Path) -> Template:
    keys = [field.name for field in fields(Template) if field.type is str or field.type == "str"]
    required = {"first", "next", "close"}
    allowed = f"{', '.join(TEMPLATES)}, or a YAML file with {', '.join(keys)}"
    try:
        values = yaml.safe_load(read_foreign(file, _LARGEST_BYTES).decode())
    except ForeignFileError as error:
        raise ConfigError(f"{file} {error}. Give {allowed}.", option="template") from None
    except OSError:
        raise ConfigError(
            f"there is no template {file}. Give {allowed}.", option="template"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: odd values, depth
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if (
        not isinstance(values, dict)
        or not required <= values.keys() <= set(keys)
        or not all(isinstance(value, str) for value in values.values())
    ):
        raise ConfigError(f"{file} is not a template. Give {allowed}, each a text.")
    return Template(**values)


def conversation_pieces(
    template: AnyTemplate | TemplateName,
    turns: Sequence[Turn],
    images: Sequence[RawImage],
    system: str | None = None,
) -> tuple[RawPiece, ...]:
    """Pieces of a whole conversation; the assistant's turns, and what ends each, are trained.

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
        2307.09288, appendix A.3.3 (llama_2); the model cards of Llama 3 and Qwen2.
    """
    template = _resolve(template)
    check_turns(turns)
    count_markers([turn for turn in turns if turn.role != "assistant"], images)
    if isinstance(template, TokenizerTemplate):
        return template.conversation(turns, images, system)
    if system is not None:
        template = replace(template, system=system.strip())
    return _written(template, turns, images)


def _written(
    template: Template, turns: Sequence[Turn], images: Sequence[RawImage]
) -> tuple[RawPiece, ...]:
    """Pieces of turns. Raises DataError."""
    writer = _Writer(template)
    waiting = list(images)
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            writer.answer(turn)
            continue
        chunks = user_chunks(turn.text)
        shown, waiting = waiting[: len(chunks) - 1], waiting[len(chunks) - 1 :]
        writer.question(chunks, shown, is_first=index == 0)
    return writer.pieces()


def template_words(
    template: AnyTemplate, pieces: Sequence[RawPiece], turns: Sequence[Turn], system: str | None
) -> tuple[str, ...]:
    """What of a conversation's texts is the template's, special tokens left out.

    Args:
        template: what wrote it.
        pieces: what it wrote, see ``conversation_pieces``.
        turns: of the conversation.
        system: its own system text, if it has one.
    """
    said = [] if system is None else [system.strip()]
    for turn in turns:
        is_answer = turn.role == "assistant"
        said += [turn.text.strip()] if is_answer else map(str.strip, user_chunks(turn.text))
    text = "".join(piece.text for piece in pieces if isinstance(piece, RawText))
    found, end = [], 0
    for words in said:
        start = text.find(words, end)
        if start >= 0:  # otherwise the template wrote it in another way, or left it out
            found.append(text[end:start])
            end = start + len(words)
    found.append(text[end:])
    if special := [token for token in template.special if token]:
        pattern = re.compile("|".join(map(re.escape, special)))
        found = [part for words in found for part in pattern.split(words)]
    return tuple(words for words in found if words)


def prompt(
    template: AnyTemplate | TemplateName,
    question: str,
    images: Sequence[RawImage] = (),
    earlier: Sequence[Turn] = (),
    earlier_images: Sequence[RawImage] = (),
    *,
    system: str | None = None,
) -> tuple[RawPiece, ...]:
    """Pieces in front of the answer to a question, exactly as a model is trained with them.

    Args:
        template: a template, or the name of a built-in one.
        question: the user's words. Without ``<image>`` markers the images go in front.
        images: what is asked about.
        earlier: what was said before, user and assistant in turn, with a marker for each image.
        earlier_images: the images of these turns, in order.
        system: in place of the template's own system text.

    Raises:
        DataError: the question has markers, but not one per image; ``plain`` has no image; the
            template has no place for ``system``; or the tokenizer's own template leaves something
            out.
    """
    template = _resolve(template)
    turns = [*earlier, asked(question, len(images))]
    shown = [*earlier_images, *images]
    if isinstance(template, TokenizerTemplate):
        return template.prompt(turns, shown, system)
    if system is not None:
        if _SYSTEM not in template.first:
            raise DataError(
                "the model's chat template has no place for a system text. Leave it out, or put "
                "it into the question."
            )
        template = replace(template, system=system.strip())
    return _written(template, turns, shown)


def _resolve(template: AnyTemplate | TemplateName) -> AnyTemplate:
    return BUILT_IN[template] if isinstance(template, str) else template


class _Writer:
    """Puts a conversation together; neighbouring words of one kind become one text."""

    def __init__(self, template: Template) -> None:
        self._template = template
        tokens = (_BOS, _EOS, *sorted(template.special, key=len, reverse=True))
        self._tokens = re.compile("|".join(map(re.escape, tokens)))
        self._pieces: list[RawPiece] = []
        self._run = ""
        self._is_trained = False

    def question(
        self, chunks: Sequence[str], images: Sequence[RawImage], *, is_first: bool
    ) -> None:
        """The user's words, an image between each two of ``chunks``. Raises DataError."""
        template = self._template
        if template.is_plain:
            if is_first and not images:
                raise DataError(
                    "the plain template is a prompt of the image alone, but there is no image. Use "
                    "another template for text-only conversations."
                )
            self._pieces += images
            return
        before, braces, after = template.first.partition(_SYSTEM)
        self._own(before if is_first else template.next)
        if is_first and braces:
            self._words(template.system)
            self._own(after)
        for chunk, image in zip(chunks, [*images, None], strict=True):
            self._words(chunk)
            if image is not None:
                self._flush()
                self._pieces.append(image)
        self._own(template.close.removesuffix(" "))

    def answer(self, turn: Turn) -> None:
        """The assistant's words."""
        template = self._template
        space = " " if template.close.endswith(" ") else ""
        self._words(space + turn.text.strip(), turn.is_trained)
        self._own(template.end, turn.is_trained)
        self._own(template.after)

    def pieces(self) -> tuple[RawPiece, ...]:
        """All of it."""
        self._flush()
        return tuple(self._pieces)

    def _own(self, text: str, is_trained: bool = False) -> None:
        """The template's own words, in which tokens are tokens."""
        end = 0
        for match in self._tokens.finditer(text):
            self._words(text[end : match.start()], is_trained)
            self._token(match.group(), is_trained)
            end = match.end()
        self._words(text[end:], is_trained)

    def _token(self, token: str, is_trained: bool) -> None:
        if token == _EOS:
            self._words("", is_trained)
            self._flush(ends_turn=True)
        else:
            self._flush()
            self._pieces.append(RawToken(None if token == _BOS else token, is_trained))

    def _words(self, text: str, is_trained: bool = False) -> None:
        if is_trained != self._is_trained:
            self._flush()
        self._is_trained = is_trained
        self._run += text

    def _flush(self, *, ends_turn: bool = False) -> None:
        if self._run or ends_turn:
            self._pieces.append(RawText(self._run, self._is_trained, ends_turn))
        self._run = ""

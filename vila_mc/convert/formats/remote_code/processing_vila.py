"""Text with ``<image>`` markers and images -> what the model reads.

Tokens are those of training: each run of text between images is tokenised on its own, and nothing
in the text becomes a special token. Where the tokenizer in this directory was made from a
SentencePiece model, it gives exactly that model's ids (the exporter's verification compares them).
"""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

IMAGE_MARKER = "<image>"

logger = logging.get_logger(__name__)


class RenderedChat(str):
    """A chat as text, which knows which of its tokens are the template's own.

    Given to the processor as it is, it becomes the tokens of training. A text made from it (cut,
    joined, formatted) is a plain text again.

    Args:
        parts: kinds and texts in order: ``text``, ``token``, or ``join`` where a text ends that
            the next goes on from.
    """

    parts: tuple[tuple[str, str], ...]

    def __new__(cls, parts: Iterable[tuple[str, str]]) -> "RenderedChat":
        parts = tuple(parts)
        chat = super().__new__(cls, "".join(text for _, text in parts))
        chat.parts = parts
        return chat

    def __reduce__(self) -> tuple[Any, ...]:
        return RenderedChat, (self.parts,)


class VilaProcessor(ProcessorMixin):
    """Tokenizer and image processor of a VILA.

    Args:
        image_processor: a VilaImageProcessor.
        tokenizer: the tokenizer of the language model.
        image_seq_length: visual tokens per square that the image processor makes (q): per image,
            or per tile.
        image_token_id: placeholder of one visual token.
        chat_template: Jinja template; the one in the directory if None.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 144,
        image_token_id: int = 32000,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.image_token_id = image_token_id
        # Marks in a rendered chat around the template's own tokens, and where a text ends that
        # another goes on from. They cannot be guessed, so no user can write one.
        secret = secrets.token_hex(16)
        self._marks = {
            "token_start": f"<token-{secret}>",
            "token_end": f"<token-end-{secret}>",
            "piece_end": f"<piece-end-{secret}>",
        }
        start, end, piece_end = self._marks.values()
        self._marked = re.compile(f"({start}.*?{end}|{piece_end})", re.DOTALL)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        *,
        audios: Any = None,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool | None = False,
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """Encode one prompt or a batch.

        Args:
            images: one per ``<image>`` marker, in reading order: an image, a list, or a list of
                lists (one per prompt).
            text: a prompt or a list of prompts. ``<image>`` marks an image; any other special
                token in it is read as the characters it is made of, but for those of the template
                in what ``apply_chat_template`` returned.
            videos: not supported, so None or an empty list.
            audio: likewise, as transformers calls it in conversations.
            audios: likewise, as some callers do.
            return_tensors: "pt", "np" or None for lists.
            padding: as in tokenizers: False, True ("longest") or "max_length".
            padding_side: "left" or "right"; the tokenizer's own if None.
            truncation: not supported, so False or None: a cut may fall into an image.
            add_special_tokens: whether a BOS token starts each prompt, if the tokenizer has one.

        Returns:
            ``input_ids``, ``attention_mask`` [b, s] and, with images, ``pixel_values``
            [n, 3, y, x]; n counts tiles, where images are cut.

        Raises:
            ValueError: there is no text, markers and images differ in number, there is video or
                audio, or prompts are to be cut.
        """
        if not all(map(_is_nothing, (videos, audio, audios))):
            raise ValueError("this model reads text and images; leave out video and audio.")
        if truncation:
            raise ValueError("a prompt is not cut, as images would be; give a shorter one.")
        if text is None:
            raise ValueError("there is no text. Give a prompt, with <image> where an image goes.")
        prompts = [text] if isinstance(text, str) else list(text)
        flat = self._match_images(prompts, images)
        squares = [self.image_processor.make_squares(image) for image in flat]
        counts = iter([len(each) for each in squares])
        rows = [self.encode_prompt(prompt, add_special_tokens, counts) for prompt in prompts]
        data = self.tokenizer.pad(
            {"input_ids": rows}, padding=padding, padding_side=padding_side
        ).data
        if flat:
            data["pixel_values"] = self.image_processor.normalise(torch.cat(squares))
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_prompt(
        self, prompt: str, add_special_tokens: bool = True, counts: Iterator[int] | None = None
    ) -> list[int]:
        """Ids of one prompt, each ``<image>`` expanded to its placeholders.

        ``counts`` gives the squares of each image in turn; one each if None.
        """
        counts = repeat(1) if counts is None else counts
        parts = prompt.parts if isinstance(prompt, RenderedChat) else tuple(self._parts(prompt))
        self._warn_of_tokens("".join(text for kind, text in parts if kind == "text"))
        bos = self.tokenizer.bos_token_id
        ids = [bos] if add_special_tokens and bos is not None else []
        is_after_text = goes_on = False
        for kind, text in parts:
            if kind == "join":
                goes_on = is_after_text
            elif kind == "token":
                ids += self._token(text)
                is_after_text = goes_on = False
            else:
                ids += self._encode_part(text, goes_on, counts)
                is_after_text, goes_on = not text.endswith(IMAGE_MARKER), False
        return ids

    def apply_chat_template(
        self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """Prompt of a conversation, or its tokens, which are exactly those of training.

        The arguments are those of every transformers processor. Without ``tokenize`` the prompt is
        a ``RenderedChat`` (of several conversations, a list), which the processor reads as exactly.
        """
        if not self._is_own(args[0] if args else kwargs.get("chat_template")):
            return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)
        kwargs = self._marks | kwargs
        result = super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)
        if tokenize:
            return result
        if isinstance(result, list):
            return [RenderedChat(self._parts(text)) for text in result]
        return RenderedChat(self._parts(result))

    def _is_own(self, template: str | None) -> bool:
        """Whether a chat template, or the directory's if None, asks for the marks."""
        return "token_start" in str(self.chat_template if template is None else template)

    def _parts(self, text: str) -> Iterator[tuple[str, str]]:
        """What ``RenderedChat`` is made of, from a text with marks."""
        start, end, piece_end = self._marks.values()
        for part in self._marked.split(text):
            if part == piece_end:
                yield "join", ""
            elif part.startswith(start):
                yield "token", part.removeprefix(start).removesuffix(end)
            elif part:
                yield "text", part

    def _warn_of_tokens(self, text: str) -> None:
        """Where a text looks as if it had been made of a conversation."""
        added = self.tokenizer.added_tokens_decoder.values()
        if found := [token.content for token in added if token.special and token.content in text]:
            logger.warning_once(
                f"The prompt holds {', '.join(map(repr, found))}, which is read as plain text. For "
                "a conversation, use apply_chat_template, and give what it returns as it is."
            )

    def _token(self, text: str) -> list[int]:
        """The template's own token; none where the tokenizer has no such thing (BOS)."""
        if not text:
            return []
        token = self.tokenizer.convert_tokens_to_ids(text)
        if token is None or (token == self.tokenizer.unk_token_id and text != "<unk>"):
            raise ValueError(f"the tokenizer has no token {text!r}, which the chat template needs.")
        return [token]

    def _encode_part(self, part: str, goes_on: bool, counts: Iterator[int]) -> list[int]:
        ids: list[int] = []
        newline = self.image_processor.tile_newline
        square = [self.image_token_id] * self.image_seq_length
        square += [] if newline is None else [newline]
        for index, chunk in enumerate(part.split(IMAGE_MARKER)):
            if index:
                ids += square * next(counts)
            ids += self._encode_text(chunk, goes_on and index == 0)
        return ids

    def _encode_text(self, text: str, goes_on: bool) -> list[int]:
        """Ids of a text; where it goes on from another, no space is read before it but its own."""
        if not goes_on or not self._adds_space():
            return self._plain_ids(text)
        if text.startswith(" "):
            return self._plain_ids(text[1:])
        return self._plain_ids(f"\n{text}")[len(self._plain_ids("\n")) :]

    def _adds_space(self) -> bool:
        """Whether the tokenizer reads every text as if a space stood before it, as Llama 2's."""
        first = self.tokenizer.convert_ids_to_tokens(self._plain_ids("a"))[0]
        return first.startswith((" ", "\u2581"))

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _match_images(self, prompts: list[str], images: Any) -> list[Any]:
        """All images in reading order, once their number is known to be right."""
        given = [] if images is None else images
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        is_nested = bool(given) and all(isinstance(item, (list, tuple)) for item in given)
        counts = [prompt.count(IMAGE_MARKER) for prompt in prompts]
        flat = [image for row in given for image in row] if is_nested else given
        is_matched = (
            [len(row) for row in given] == counts if is_nested else len(flat) == sum(counts)
        )
        if not is_matched:
            found = [len(row) for row in given] if is_nested else len(flat)
            raise ValueError(
                f"the prompts hold {counts} {IMAGE_MARKER} markers, but {found} images are given. "
                "Give one image per marker, in reading order."
            )
        return flat


def _is_nothing(given: Any) -> bool:
    """None, or lists of it."""
    is_list = isinstance(given, (list, tuple))
    return all(map(_is_nothing, given)) if is_list else given is None

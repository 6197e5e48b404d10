"""Text with ``<image>`` markers and images -> what the model reads.

Tokens are those of training: each run of text between images is tokenised on its own, and nothing
in the text becomes a special token. Where the tokenizer in this directory was made from a
SentencePiece model, it gives exactly that model's ids (the exporter's verification compares them).
"""

# transformers is not typed:
# mypy: allow-subclassing-any, no-warn-return-any

import secrets
from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

IMAGE_MARKER = "<image>"

logger = logging.get_logger(__name__)


class VilaProcessor(ProcessorMixin):
    """Tokenizer and image processor of a VILA.

    Args:
        image_processor: a VilaImageProcessor.
        tokenizer: the tokenizer of the language model.
        image_seq_length: visual tokens per image (q).
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
        # Marks in a rendered chat where text stops being user's text. They cannot be guessed, so
        # no user can write one.
        secret = secrets.token_hex(16)
        self._turn_end, self._part_end = f"<turn-end-{secret}>", f"<part-end-{secret}>"

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        *,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """Encode one prompt or a batch.

        Args:
            images: one per ``<image>`` marker, in reading order: an image, a list, or a list of
                lists (one per prompt).
            text: a prompt or a list of prompts. ``<image>`` marks an image; any other special
                token in it is read as the characters it is made of.
            videos: not supported; transformers passes it from conversations.
            audio: not supported, likewise.
            return_tensors: "pt", "np" or None for lists.
            padding: as in tokenizers: False, True ("longest") or "max_length".
            padding_side: "left" or "right"; the tokenizer's own if None.
            add_special_tokens: whether a BOS token starts each prompt, if the tokenizer has one.

        Returns:
            ``input_ids``, ``attention_mask`` [b, s] and, with images, ``pixel_values``
            [n, 3, y, x].

        Raises:
            ValueError: there is no text, markers and images differ in number, or there is video
                or audio.
        """
        if videos is not None or audio is not None:
            raise ValueError("this model reads text and images; leave out video and audio.")
        if text is None:
            raise ValueError("there is no text. Give a prompt, with <image> where an image goes.")
        prompts = [text] if isinstance(text, str) else list(text)
        flat = self._match_images(prompts, images)
        rows = [self.encode_prompt(prompt, add_special_tokens) for prompt in prompts]
        data = self.tokenizer.pad(
            {"input_ids": rows}, padding=padding, padding_side=padding_side
        ).data
        if flat:
            data["pixel_values"] = self.image_processor(flat)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_prompt(self, prompt: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of one prompt, each ``<image>`` expanded to its q placeholders."""
        if self.tokenizer.eos_token in prompt:
            logger.warning_once(
                f"The prompt holds {self.tokenizer.eos_token!r}, which is read as plain text. For "
                "a conversation with earlier answers, use apply_chat_template(..., tokenize=True)."
            )
        bos = self.tokenizer.bos_token_id
        ids = [bos] if add_special_tokens and bos is not None else []
        turns = prompt.split(self._turn_end)
        for index, turn in enumerate(turns):
            for part in turn.split(self._part_end):
                ids += self._encode_part(part)
            if index + 1 < len(turns):
                ids.append(self.tokenizer.eos_token_id)
        return ids

    def apply_chat_template(
        self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """Prompt of a conversation, with the exact tokens of training if ``tokenize`` is True.

        The arguments are those of every transformers processor.
        """
        if tokenize:
            kwargs.setdefault("eos_token", self._turn_end)
            kwargs.setdefault("answer_start", self._part_end)
        return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)

    def _encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        for index, chunk in enumerate(part.split(IMAGE_MARKER)):
            if index:
                ids += [self.image_token_id] * self.image_seq_length
            ids += self.tokenizer(chunk, add_special_tokens=False, split_special_tokens=True)[
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

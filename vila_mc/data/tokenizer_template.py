"""The chat template that a Hugging Face tokenizer brings: the ids are those of its own
``apply_chat_template``, and what of them is trained is told from it, too."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn, user_chunks
from vila_mc.errors import ConfigError, DataError, SetupError
from vila_mc.flow import RawImage, RawPiece, RawText
from vila_mc.processes import bounded

_IMAGE = "\ufdd0"
"""Stands for an image while the template is applied: no character, and in no text."""
_PROBE = "vila"
"""Said to see what a template writes behind it."""
_DATE = "26 Jul 2024"
"""What Llama 3.1 takes for today where it is not told: a dataset must not depend on the day."""
_SECONDS = 10.0
_MOST_BYTES = 1 << 30
"""What a template may take, for one conversation. It is a program of whoever published it."""
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class TokenizerTemplate:
    """A chat template in Jinja."""

    text: str
    variables: tuple[tuple[str, str], ...]
    """Names of special tokens that it may use, as ``bos_token``, and their texts."""
    special: tuple[str, ...]
    """Special tokens of the tokenizer, which no record may spell."""

    def describe(self) -> dict[str, Any]:
        """For the manifest of a dataset, as JSON takes it."""
        return {"tokenizer": self.text}

    def stop_tokens(self) -> tuple[str, ...]:
        """Special tokens, besides EOS, that end an answer: the first that it puts behind one."""
        if not self.special:
            return ()
        turns = [Turn("user", _PROBE), Turn("assistant", _PROBE)]
        behind = self._render(self._messages(turns, None))[0].rpartition(_PROBE)[2]
        found = [(behind.index(token), token) for token in self.special if token in behind]
        return (min(found)[1],) if found else ()

    def conversation(
        self, turns: Sequence[Turn], images: Sequence[RawImage], system: str | None
    ) -> tuple[RawPiece, ...]:
        """See ``vila_mc.data.chat_templates.conversation_pieces``. Raises DataError."""
        messages = self._messages(turns, system)
        if _MARKED.search(self.text):
            rendered, spans = self._render(messages, with_spans=True)
        else:
            rendered, spans = self._render_in_steps(messages)
        answers = [turn for turn in turns if turn.role == "assistant"]
        if len(spans) != len(answers):
            raise DataError(
                f"the tokenizer's chat template marks {len(spans)} answers of {len(answers)}."
            )
        trained = [span for span, turn in zip(spans, answers, strict=True) if turn.is_trained]
        return _split(rendered, trained, images)

    def prompt(
        self, turns: Sequence[Turn], images: Sequence[RawImage], system: str | None = None
    ) -> tuple[RawPiece, ...]:
        """See ``vila_mc.data.chat_templates.prompt``. Raises DataError."""
        messages = self._messages(turns, system)
        rendered, _ = self._render(messages, add_generation_prompt=True)
        if system is not None and system.strip() not in rendered:
            raise DataError(
                "the tokenizer's chat template leaves out the system text. Put it into the "
                "question."
            )
        if not all(words.strip() in rendered for words in messages[-1]["content"].split(_IMAGE)):
            raise DataError(
                "the tokenizer's chat template leaves out the user's words. Use another template."
            )
        return _split(rendered, [], images)

    def _messages(self, turns: Sequence[Turn], system: str | None) -> list[dict[str, str]]:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for turn in turns:
            is_answer = turn.role == "assistant"
            text = turn.text.strip() if is_answer else _IMAGE.join(user_chunks(turn.text))
            messages.append({"role": turn.role, "content": text})
        for message in messages:
            if message["role"] != "user" and _IMAGE in message["content"]:
                raise DataError("the text holds U+FDD0, which is no character. Remove it.")
            for token in self.special:
                if token in message["content"]:
                    raise DataError(
                        f"the text holds {token}, which the tokenizer's own chat template cannot "
                        "tell from its special token. Remove it, or use another template."
                    )
        return messages

    def _render_in_steps(self, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation, and where each answer is: what is new when it is added."""
        whole, _ = self._render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._render(messages[:index], add_generation_prompt=True)
            after, _ = self._render(messages[: index + 1])
            end = _common_length(after, whole)
            if not whole.startswith(before) or message["content"] not in whole[len(before) : end]:
                raise DataError(
                    "the tokenizer's chat template writes a turn in another way once others "
                    "follow, so what of it is trained cannot be told. Mark the answers in it with "
                    "{% generation %}, or use another template."
                )
            spans.append((len(before), self._end_of_answer(whole, len(before), end)))
        return whole, spans

    def _end_of_answer(self, text: str, start: int, end: int) -> int:
        """Behind the last special token, so that a newline after it is not trained."""
        ends = [text.rfind(token, start, end) + len(token) for token in self.special]
        return max((at for at in ends if at > start), default=end)

    def _render(
        self, messages: list[dict[str, str]], *, with_spans: bool = False, **options: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with bounded(_SECONDS, _MOST_BYTES):
                (rendered,), spans = render_jinja_template(
                    [messages],
                    chat_template=self.text,
                    return_assistant_tokens_mask=with_spans,
                    date_string=_DATE,
                    **options,
                    **dict(self.variables),
                )
        except Exception as error:  # templates raise what they like
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            raise DataError(f"the tokenizer's chat template refuses: {reason}") from None
        return rendered, list(spans[0]) if with_spans else []


def read_tokenizer_template(tokenizer: Tokenizer) -> TokenizerTemplate:
    """The chat template beside a tokenizer.json.

    Raises:
        ConfigError: there is none.
        SetupError: transformers is not installed.
    """
    try:
        import transformers.utils.chat_template_utils  # noqa: F401 - now, not at the first record
    except ImportError:
        raise SetupError(
            "a tokenizer's own chat template needs transformers. Run pip install 'vila_mc[hf]'."
        ) from None
    text, variables = tokenizer.chat_template()
    if text is None:
        raise ConfigError(
            f"{tokenizer.path} brings no chat template. Use a folder with tokenizer.json and "
            "tokenizer_config.json or chat_template.jinja, or another template.",
            option="template",
        )
    return TokenizerTemplate(text, tuple(sorted(variables.items())), tokenizer.special_tokens())


def _common_length(one: str, other: str) -> int:
    """Characters at the start of both."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _split(
    text: str, trained: Sequence[tuple[int, int]], images: Sequence[RawImage]
) -> tuple[RawPiece, ...]:
    """Pieces of a text that is trained in some places and holds images in others."""
    marks = {0, len(text)} | {place for span in trained for place in span}
    images_at = [place for place, character in enumerate(text) if character == _IMAGE]
    if len(images_at) != len(images):
        raise DataError("the tokenizer's chat template changes the number of images.")
    waiting = iter(images)
    bounds = sorted(marks | set(images_at) | {place + 1 for place in images_at})
    pieces: list[RawPiece] = []
    for start, end in pairwise(bounds):
        if text[start] == _IMAGE:
            pieces.append(next(waiting))
        else:
            is_trained = any(first <= start < last for first, last in trained)
            pieces.append(RawText(text[start:end], is_trained, is_rendered=True))
    return tuple(pieces)

"""Where an answer ends: at the token, or the text, that ended those a model was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from vila_mc.data.chat_templates import BUILT_IN, AnyTemplate, Template, TemplateName
from vila_mc.data.tokenizers.tokenizer import Tokenizer

_EOS = "{eos}"


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """What ends an answer."""

    tokenizer: Tokenizer
    ids: frozenset[int]
    """EOS, and the special tokens that a template puts in its place."""
    text: str = ""
    """What the template writes behind an answer in front of such a token, or in its place."""
    is_text_alone: bool = False
    """Whether no token follows ``text``, so that it is the end, as the newline of ``plain``."""
    stops: tuple[str, ...] = ()
    """Other texts that end it, as a person asks for."""

    @classmethod
    def of(cls, template: AnyTemplate | TemplateName, tokenizer: Tokenizer) -> Self:
        """What ends the answers of a template. Raises DataError: the tokenizer lacks a token."""
        if isinstance(template, str):
            template = BUILT_IN[template]
        names = template.stop_tokens()
        ids = frozenset({tokenizer.eos_id, *map(tokenizer.special_id, names)})
        if not isinstance(template, Template):
            return cls(tokenizer, ids)
        tokens = [template.end.find(token) for token in (_EOS, *names) if token in template.end]
        text = template.end[: min(tokens, default=len(template.end))]
        return cls(tokenizer, ids, text, is_text_alone=bool(text) and not tokens)

    def is_reached(self, answer: Sequence[int]) -> bool:
        """Whether token ids end an answer."""
        if answer[-1] in self.ids:
            return True
        # In the text, as a newline may be a token together with what stands before it.
        ends = self._end_texts()
        return bool(ends) and any(end in self._text(answer) for end in ends)

    def words(self, answer: Sequence[int]) -> str:
        """The text of token ids without what ends it, and without spaces around it."""
        said = self._text([token for token in answer if token not in self.ids])
        if ends := self._end_texts():
            said = min((said.partition(end)[0] for end in ends), key=len)
        if self.is_text_alone:
            return said.strip()
        is_ended = bool(answer) and answer[-1] in self.ids
        return said.strip().removesuffix(self.text.strip() if is_ended else "").strip()

    def settled_words(self, answer: Sequence[int]) -> str:
        """What of ``words`` stays as it is, whatever token is next.

        The beginning of what may become the end is left out, so are spaces behind the last word and
        a character whose bytes are not all there.
        """
        if not answer or self.is_reached(answer):
            return self.words(answer)
        said = self._text(answer).lstrip().rstrip("\ufffd")
        settled = said.rstrip()
        # ``words`` looks for the template's own text in front of a token behind no spaces.
        for words, ends in ((said, self._end_texts()), (settled, (self.text.strip(),))):
            begun = [n for end in ends for n in range(1, len(end) + 1) if words.endswith(end[:n])]
            settled = settled[: len(words) - max(begun, default=0)]
        return settled.rstrip()

    def _end_texts(self) -> tuple[str, ...]:
        """What in the text itself is the end."""
        return (*self.stops, self.text) if self.is_text_alone else self.stops

    def _text(self, answer: Sequence[int]) -> str:
        """U+FFFD stands for an id without a token: a model may have more rows than its tokenizer,
        and one that has hardly learned says them."""
        known = groupby(answer, lambda token: token < self.tokenizer.vocab_size)
        return "".join(
            self.tokenizer.decode([*ids]) if is_known else "\ufffd" * len([*ids])
            for is_known, ids in known
        )

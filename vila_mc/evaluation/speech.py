"""An answer that is shown while it is made."""

from dataclasses import dataclass, field

from vila_mc.evaluation.answer_end import AnswerEnd


@dataclass(slots=True)
class Speech:
    """Tokens of one answer, and what of its words was shown; all of it is the answer's words."""

    end: AnswerEnd
    """What ends the answer."""
    tokens: list[int] = field(default_factory=list)
    """Token ids so far."""
    shown: str = ""
    """What ``hear`` and ``finish`` have given."""

    def hear(self, token: int) -> str:
        """Take the next token. Returns the words that can be shown behind those before."""
        self.tokens.append(token)
        return self._new(self.end.settled_words(self.tokens))

    def finish(self) -> str:
        """The words that were held back, once no token follows."""
        return self._new(self.end.words(self.tokens))

    @property
    def is_cut(self) -> bool:
        """Whether the answer would have gone on."""
        return not self.tokens or not self.end.is_reached(self.tokens)

    def _new(self, words: str) -> str:
        if not words.startswith(self.shown):  # what was shown cannot be taken back
            return ""
        new, self.shown = words[len(self.shown) :], words
        return new

"""Answers that come together, a token of each at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import Choice
from vila_mc.evaluation.decoder import Decoder, encoded_positions
from vila_mc.flow import Piece, TextPiece
from vila_mc.model.vila_model import VilaModel


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt, and how it is continued."""

    pieces: tuple[Piece, ...]
    """What ``encode_prompt`` gives."""
    max_new_tokens: int
    """Longest answer."""
    end: AnswerEnd
    """What ends the answer."""
    choice: Choice
    """How its tokens are chosen; no beams, which are known at the end alone."""


class Answering:
    """Prompts of any lengths that are answered together. None is answered otherwise than alone.

    Args:
        model: a whole model in evaluation mode.
        asked: what is answered, each a row.

    Raises:
        ConfigError: a prompt and its answer do not fit the model's positions.
        DataError: an image cannot be decoded.
    """

    def __init__(self, model: VilaModel, asked: Sequence[Continuation]) -> None:
        assert all(one.choice.beams == 1 for one in asked), "beams are known at the end alone"
        shape = model.run_config.model
        lengths = [encoded_positions(one.pieces, shape) for one in asked]
        ends = [n + one.max_new_tokens for n, one in zip(lengths, asked, strict=True)]
        self._asked = asked
        self._decoder = Decoder(model, [one.pieces for one in asked], max(ends) - max(lengths))
        self._generators = [one.choice.generator(_text_ids(one.pieces)) for one in asked]
        self._rows = [*range(len(asked))]
        """Whose logits the decoder has, in its order."""
        self._is_read = True
        """Whether it has read the last token of each."""
        self.answers: list[list[int]] = [[] for _ in asked]
        """Token ids so far; what ends an answer is its last one."""
        self.going = {*self._rows}
        """Rows that go on."""

    def step(self) -> list[tuple[int, int]]:
        """The next token of each row that goes on: number of the row, and the token."""
        left = [at for at, row in enumerate(self._rows) if row in self.going]
        if len(left) < len(self._rows):
            self._decoder.take(left)
            self._rows = [self._rows[at] for at in left]
        if not self._is_read:
            self._decoder.read([self.answers[row][-1] for row in self._rows])
        self._is_read = False
        tokens = self._next_tokens()
        for row, token in tokens:
            answer, asked = self.answers[row], self._asked[row]
            answer.append(token)
            if asked.end.is_reached(answer) or len(answer) == asked.max_new_tokens:
                self.going.remove(row)
        return tokens

    def drop(self, row: int) -> None:
        """Answer a row no further."""
        self.going.discard(row)

    def _next_tokens(self) -> list[tuple[int, int]]:
        choices = [self._asked[row].choice for row in self._rows]
        found: dict[int, int] = {}
        for choice in dict.fromkeys(choices):
            places = [at for at, other in enumerate(choices) if other == choice]
            rows = [self._rows[at] for at in places]
            logits_bv = self._decoder.logits_bv[places]
            tokens = choice.next_tokens(logits_bv, [self._generators[row] for row in rows])
            found |= zip(rows, tokens, strict=True)
        tokens = self._decoder.agree([found[row] for row in self._rows])
        return list(zip(self._rows, tokens, strict=True))


def _text_ids(pieces: Sequence[Piece]) -> list[int]:
    return [int(i) for piece in pieces if isinstance(piece, TextPiece) for i in piece.ids]

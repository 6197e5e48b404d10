"""A conversation with a model: each question is read after what was said before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vila_mc.data.chat_templates import AnyTemplate, Template, prompt
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn, asked
from vila_mc.errors import ConfigError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering, Continuation
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.decoder import encode_prompt, encoded_positions
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.showing import images_of
from vila_mc.evaluation.speech import Speech
from vila_mc.flow import Piece, RawImage, RawPiece
from vila_mc.model.vila_model import VilaModel


@dataclass(frozen=True, slots=True)
class AskedModel:
    """Whom one asks, and how."""

    model: VilaModel
    """A whole model in evaluation mode."""
    tokenizer: Tokenizer
    """What it was trained with."""
    template: AnyTemplate
    """Chat template that it was trained with."""

    @property
    def is_plain(self) -> bool:
        """Whether a prompt is images alone, so that it is asked each question as if the first."""
        return isinstance(self.template, Template) and self.template.is_plain

    def positions(self) -> int:
        """Most positions that a prompt and its answer may take."""
        return self.model.run_config.model.language.max_positions

    def room(self, pieces: Sequence[Piece]) -> int:
        """Positions that a prompt leaves to its answer. Raises ConfigError: it leaves none."""
        taken, limit = encoded_positions(pieces, self.model.run_config.model), self.positions()
        if taken >= limit:
            raise ConfigError(
                f"the conversation takes {taken} positions with this question, and the model has "
                f"{limit} (model.language.max_positions). Start a new one, or ask with less."
            )
        return limit - taken


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says."""

    text: str
    is_cut: bool
    """Whether it would have gone on: the most tokens allowed came without an end."""


@dataclass(slots=True)
class Conversation:
    """Questions to a model, and its answers, which later questions stand behind."""

    asked_model: AskedModel
    max_new_tokens: int = 256
    """Longest answer. It is cut where the model's positions end, too."""
    choice: Choice = GREEDY
    """How its tokens are chosen."""
    _turns: list[Turn] = field(default_factory=list, init=False)
    _images: list[RawImage] = field(default_factory=list, init=False)

    def ask(
        self,
        question: str,
        images: Sequence[Path] = (),
        show: Callable[[str], object] | None = None,
    ) -> Reply:
        """Ask the next question. One that fails leaves the conversation as it was.

        The model of the template ``plain``, which is a prompt of images alone, is asked each
        question as if it were the first.

        Args:
            question: the user's words, in which ``<image>`` marks the place of each image; without
                such a marker images stand in front.
            images: files of what this question is about, besides the images of earlier ones; a
                video stands for its frames, at the marker ``<video>`` or in front.
            show: is given the reply's words, part by part while they come; where there are beams,
                all at the end.

        Raises:
            ConfigError: the conversation does not fit the model's positions.
            DataError: markers and images differ, or an image or a video cannot be used.
            KeyboardInterrupt: from without; what was said until then is kept as the reply.
        """
        template, tokenizer = self.asked_model.template, self.asked_model.tokenizer
        question, shown = images_of(question, images)
        pieces = prompt(template, question, shown, self._turns, self._images)
        speech = Speech(AnswerEnd.of(template, tokenizer))
        try:
            for token in self._tokens(pieces, speech.end):
                words = speech.hear(token)
                if show is not None and words:
                    show(words)
        except KeyboardInterrupt:
            if speech.shown:
                self._keep(question, shown, speech.shown)
            raise
        words = speech.finish()
        if show is not None and words:
            show(words)
        reply = Reply(speech.end.words(speech.tokens), speech.is_cut)
        self._keep(question, shown, reply.text)
        return reply

    def _tokens(self, pieces: Sequence[RawPiece], end: AnswerEnd) -> Iterator[int]:
        """The answer to a prompt, token by token. Raises ConfigError or DataError."""
        model, tokenizer = self.asked_model.model, self.asked_model.tokenizer
        encoded = encode_prompt(pieces, tokenizer)
        room = min(self.max_new_tokens, self.asked_model.room(encoded))
        if self.choice.beams > 1:
            yield from generate(model, tokenizer, [pieces], room, end, self.choice)[0]
            return
        answering = Answering(model, [Continuation(encoded, room, end, self.choice)])
        while answering.going:
            ((_, token),) = answering.step()
            yield token

    def _keep(self, question: str, shown: Sequence[RawImage], reply: str) -> None:
        if not self.asked_model.is_plain:
            self._turns += [asked(question, len(shown)), Turn("assistant", reply)]
            self._images += shown

    def start_anew(self) -> None:
        """Forget what was said."""
        self._turns.clear()
        self._images.clear()

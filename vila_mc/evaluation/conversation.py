"""A conversation with a model: each question is read after what was said before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vila_mc.data.chat_templates import AnyTemplate, Template, prompt
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn, asked
from vila_mc.errors import ConfigError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.generate import generate, prompt_positions
from vila_mc.flow import RawImage
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

    def ask(self, question: str, images: Sequence[Path] = ()) -> Reply:
        """Ask the next question. One that fails leaves the conversation as it was.

        The model of the template ``plain``, which is a prompt of images alone, is asked each
        question as if it were the first.

        Args:
            question: the user's words, in which ``<image>`` marks the place of each image; without
                such a marker images stand in front.
            images: files of what this question is about, besides the images of earlier ones.

        Raises:
            ConfigError: the conversation does not fit the model's positions.
            DataError: markers and images differ in number, or an image cannot be used.
        """
        model, tokenizer = self.asked_model.model, self.asked_model.tokenizer
        template = self.asked_model.template
        shown = [RawImage(path, str(path)) for path in images]
        pieces = prompt(template, question, shown, self._turns, self._images)
        limit = model.run_config.model.language.max_positions
        taken = prompt_positions(pieces, tokenizer, model.run_config.model)
        if taken >= limit:
            raise ConfigError(
                f"the conversation takes {taken} positions with this question, and the model has "
                f"{limit} (model.language.max_positions). Start a new one, or ask with less."
            )
        end = AnswerEnd.of(template, tokenizer)
        room = min(self.max_new_tokens, limit - taken)
        (answer,) = generate(model, tokenizer, [pieces], room, end, self.choice)
        reply = Reply(end.words(answer), is_cut=not end.is_reached(answer))
        if not (isinstance(template, Template) and template.is_plain):
            said = asked(question, len(shown))
            self._turns += [said, Turn("assistant", reply.text)]
            self._images += shown
        return reply

    def start_anew(self) -> None:
        """Forget what was said."""
        self._turns.clear()
        self._images.clear()

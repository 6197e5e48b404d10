"""How a question stands behind its demonstrations, in each form."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from vila_mc.data.chat_templates import AnyTemplate, Template, prompt
from vila_mc.data.turns import IMAGE_MARKER, Turn, asked
from vila_mc.evaluation.tasks.task import TEXT_FORMS, Form, Item, Task
from vila_mc.flow import RawImage, RawPiece, RawText

_QUESTION_STOPS = ("Question", "Answer", "Short", ", ")
_CAPTION_STOPS = ("Output",)
"""What open_flamingo cuts answers at."""


def right_answer(task: Task, item: Item) -> str:
    """What a demonstration answers: the first of its right answers, as open_flamingo takes it."""
    text = item.choices[item.expected[0]] if task.asks == "letter" else item.expected[0]
    return text.strip()


def prompt_pieces(
    template: AnyTemplate,
    task: Task,
    item: Item,
    shown: Sequence[Item] = (),
    form: Form = "chat",
    *,
    is_blind: bool = False,
) -> tuple[RawPiece, ...]:
    """What is read in front of the answer.

    Args:
        template: the model's, which the form ``chat`` is written in.
        task: that the items are of.
        item: what is asked.
        shown: demonstrations, in order.
        form: how all of it is written.
        is_blind: whether demonstrations stand there without their images.

    Source:
        ``chat``: each demonstration is a turn of a user and one of the assistant. ``flamingo``:
        mlfoundations/open_flamingo, open_flamingo/eval, with an image's tokens for ``<image>`` and
        EOS for ``<|endofchunk|>``. ``text``: EleutherAI/lm-evaluation-harness. ``interleaved``: how
        VILA (arXiv 2312.07533) joins the sentences of an MMC4 document.
    """
    if form == "chat":
        turns: list[Turn] = []
        images: list[RawImage] = []
        for one in shown:
            asked_turn = asked(one.question, len(one.images))
            turns += [asked_turn, Turn("assistant", right_answer(task, one), is_trained=False)]
            images += one.images
        return prompt(template, item.question, item.images, turns, images)
    between = " " if form == "interleaved" else "\n\n"
    write = _flamingo if form == "flamingo" else partial(_text, between=between)
    pieces: list[RawPiece] = []
    for one in shown:
        seen = _blind(one) if is_blind else one
        pieces += write(seen, seen.images, right_answer(task, one))
    return tuple(_joined([*pieces, *write(item, item.images, None)]))


def space_before_answer(template: AnyTemplate, form: Form) -> str:
    """What an answer begins with, as it stands behind the prompt."""
    if form != "chat":
        return " " if form in TEXT_FORMS else ""
    return " " if isinstance(template, Template) and template.close.endswith(" ") else ""


def written(pieces: Sequence[RawPiece]) -> str:
    """A prompt for people: ``<image>`` for an image, other tokens as the tokenizer spells them."""
    texts = []
    for piece in pieces:
        if isinstance(piece, RawText):
            texts.append(piece.text + ("{eos}" if piece.ends_turn else ""))
        elif isinstance(piece, RawImage):
            texts.append(IMAGE_MARKER)
        else:
            texts.append(piece.name or "{bos}")
    return "".join(texts)


def _blind(item: Item) -> Item:
    if not item.images:
        return item
    question, words = (text.replace(IMAGE_MARKER, "") for text in (item.question, item.words))
    return replace(item, question=question, words=words, images=())


def stops_of(form: Form, item: Item) -> tuple[str, ...]:
    """Texts that end an answer in a form, besides those of the task."""
    if form != "flamingo":
        return ()
    return _QUESTION_STOPS if item.words else _CAPTION_STOPS


def _flamingo(item: Item, images: Sequence[RawImage], answer: str | None) -> Iterator[RawPiece]:
    yield from _placed(f"Question:{item.words} Short answer:" if item.words else "Output:", images)
    if answer is not None:
        yield RawText(answer, is_trained=False, ends_turn=True)
        yield RawText("\n", is_trained=False)


def _text(
    item: Item, images: Sequence[RawImage], answer: str | None, between: str
) -> Iterator[RawPiece]:
    yield from _placed(item.question, images)
    if answer is not None:
        yield RawText(f" {answer}{between}", is_trained=False)


def _placed(text: str, images: Sequence[RawImage]) -> Iterator[RawPiece]:
    """A text with images where its markers are, or in front."""
    before, *behind = text.split(IMAGE_MARKER) if images else [text]
    if len(behind) != len(images):
        before, behind = "", [*[""] * (len(images) - 1), text]
    yield RawText(before, is_trained=False)
    for image, chunk in zip(images, behind, strict=True):
        yield image
        yield RawText(chunk, is_trained=False)


def _joined(pieces: Sequence[RawPiece]) -> Iterator[RawPiece]:
    """Neighbouring texts as one, which is tokenised whole; none that is empty."""
    run, ends = "", False
    for piece in pieces:
        if isinstance(piece, RawText) and not ends:
            run, ends = run + piece.text, piece.ends_turn
            continue
        if run or ends:
            yield RawText(run, is_trained=False, ends_turn=ends)
        run, ends = "", False
        if isinstance(piece, RawText):
            run, ends = piece.text, piece.ends_turn
        else:
            yield piece
    if run or ends:
        yield RawText(run, is_trained=False, ends_turn=ends)

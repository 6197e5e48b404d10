"""A conversation: each question after what was said, images in their places, and anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.videos import make_video
from tests.unit.evaluation.conftest import Subject
from vila_mc.data.chat_templates import BUILT_IN, AnyTemplate, Template, prompt
from vila_mc.data.sources.video import MOST_FRAMES, FramePolicy, read_frames
from vila_mc.data.turns import Turn
from vila_mc.errors import ConfigError, DataError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.conversation import AskedModel, Conversation
from vila_mc.evaluation.generate import generate
from vila_mc.flow import RawImage

BARE = Template(system="", first="", next="and ", close="")
"""Without words of its own, which would drown what an untrained model is asked."""


def begin(subject: Subject, template: AnyTemplate = BARE, length: int = 5) -> Conversation:
    return Conversation(AskedModel(subject.model, subject.tokenizer, template), length)


def continued(subject: Subject, question: str, names: Sequence[str], *earlier: Any) -> str:
    """What the model says to a prompt that is put together by hand."""
    shown = [RawImage(subject.images / name, name) for name in names]
    pieces = prompt(BARE, question, shown, *earlier)
    (answer,) = generate(subject.model, subject.tokenizer, [pieces], 5)
    return AnswerEnd.of(BARE, subject.tokenizer).words(answer)


def test_later_questions_stand_behind_earlier_ones(subject: Subject) -> None:
    conversation = begin(subject)
    red, blue = subject.images / "red.png", subject.images / "blue.png"
    first = conversation.ask("what colour?", [red])
    second = conversation.ask("is <image> another?", [blue])
    assert first.text == continued(subject, "what colour?", ["red.png"])
    said = [Turn("user", "<image>\nwhat colour?"), Turn("assistant", first.text)]
    shown = [RawImage(red, "red.png")]
    expected = continued(subject, "is <image> another?", ["blue.png"], said, shown)
    assert second.text == expected
    assert second.text != continued(subject, "is <image> another?", ["blue.png"])
    assert first.is_cut
    conversation.start_anew()
    assert conversation.ask("what colour?", [red]) == first


def test_a_question_of_text_alone(subject: Subject) -> None:
    assert begin(subject).ask("one two").text == continued(subject, "one two", [])


@pytest.mark.parametrize(
    ("question", "names", "error", "message"),
    [
        ("<image> or <image>?", ["red.png"], DataError, "2 <image> markers but 1 images"),
        ("what <image>?", [], DataError, "1 <image> markers but 0 images"),
        ("what?", ["none.png"], DataError, "missing image"),
        ("word " * 320, [], ConfigError, r"takes \d+ positions with this question, and the model"),
    ],
)
def test_a_question_that_fails_leaves_the_conversation(
    subject: Subject, question: str, names: list[str], error: type[Exception], message: str
) -> None:
    conversation, undisturbed = begin(subject), begin(subject)
    for one in (conversation, undisturbed):
        one.ask("what colour?", [subject.images / "red.png"])
    with pytest.raises(error, match=message):
        conversation.ask(question, [subject.images / name for name in names])
    assert conversation.ask("why?") == undisturbed.ask("why?")


def test_an_answer_ends_where_the_positions_do(subject: Subject) -> None:
    reply = begin(subject, length=10_000).ask("word " * 60)
    assert reply.is_cut
    assert len(subject.tokenizer.encode(reply.text)) < 320


def test_plain_is_asked_each_image_anew(subject: Subject) -> None:
    conversation = begin(subject, BUILT_IN["plain"])
    red, blue = subject.images / "red.png", subject.images / "blue.png"
    alone = begin(subject, BUILT_IN["plain"]).ask("", [blue])
    conversation.ask("what?", [red])
    assert conversation.ask("what else?", [blue]) == alone
    with pytest.raises(DataError, match="plain template is a prompt of the image alone"):
        conversation.ask("and now?")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames."""
    pytest.importorskip("av", reason="PyAV is not installed (the extra video)")
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video("a.mp4", frames=10))
    return path


@pytest.mark.parametrize(
    ("question", "prompt_text"),
    [
        ("what happens?", "{video}\n<image>\nwhat happens?"),
        ("<video>, and <image>?", "{video}, and <image>?"),
    ],
)
def test_a_video_stands_for_its_frames(
    question: str, prompt_text: str, clip: Path, subject: Subject
) -> None:
    """The frames that preprocessing keeps, in its order, as images of the question."""
    kept = [frame.image for frame in read_frames(RawImage(clip, clip.name), FramePolicy())]
    assert len(kept) == MOST_FRAMES
    red = subject.images / "red.png"
    text = prompt_text.format(video="\n".join(["<image>"] * MOST_FRAMES))
    pieces = prompt(BARE, text, [*kept, RawImage(red, "red")])
    (answer,) = generate(subject.model, subject.tokenizer, [pieces], 5)
    reply = begin(subject).ask(question, [clip, red])
    assert reply.text == AnswerEnd.of(BARE, subject.tokenizer).words(answer)


@pytest.mark.parametrize(
    ("question", "names", "message"),
    [
        ("<image> and <video>?", ["a.mp4", "red.png"], "the question has <image> <video>, but"),
        ("<image>?", ["a.mp4"], "what is shown is <video>. Give files in the order"),
        ("<video>?", ["red.png"], "what is shown is <image>"),
        ("<video>?", [], "what is shown is none"),
        ("what?", ["none.mp4"], "there is no file"),
    ],
)
def test_videos_and_their_markers_agree(
    question: str, names: list[str], message: str, clip: Path, subject: Subject
) -> None:
    folders = {"red.png": subject.images}
    files = [folders.get(name, clip.parent) / name for name in names]
    with pytest.raises(DataError, match=message):
        begin(subject).ask(question, files)

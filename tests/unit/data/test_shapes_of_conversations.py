"""Conversations as people write them: each reads as LLaVA's own form does, or is refused."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Rejected, read
from vila_mc.data.sources.text import TextSource
from vila_mc.flow import RawImage, RawPiece, RawText

Write = Callable[..., Path]
Record = dict[str, Any]

ASKED, SAID = "Q ASSISTANT:", "{ A$}"
INLINE = "data:image/png;base64," + base64.b64encode(b"PNG").decode()


def talk(question: object, answer: object = "A", **others: object) -> Record:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **others}


def chat(*contents: object, **others: object) -> Record:
    roles = ["user", "assistant"] * len(contents)
    return {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ],
        **others,
    }


def entries(*said: tuple[object, object], **others: object) -> Record:
    return {"conversations": [{"from": who, "value": what} for who, what in said], **others}


def shown(pieces: tuple[RawPiece, ...]) -> str:
    """Trained text in braces, images as <name>, without the template's system text."""
    out = ""
    for piece in pieces:
        if isinstance(piece, RawImage):
            out += f"<{piece.name}>"
        elif isinstance(piece, RawText):
            text = piece.text + "$" * piece.ends_turn
            out += f"{{{text}}}" if piece.is_trained else text
    return out.partition("USER: ")[2]


IMAGE = f"<a.jpg>\n{ASKED}{SAID}"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # absent keys
        (talk("<image>\nQ", image="a.jpg", images=None), IMAGE),
        (talk("<image>\nQ", image=None, images=["a.jpg"]), IMAGE),
        (talk("<image>\nQ", image="", images=["a.jpg"], video=[]), IMAGE),
        (chat("<image>Q", "A", conversations=None, images=["a.jpg"]), IMAGE),
        (chat("<image>Q", "A", conversations=[], images=["a.jpg"], system=None), IMAGE),
        (talk("Q", image="", images=[], video="", messages=None), ASKED + SAID),
        ({"question": "Q", "answer": "A", "conversations": None}, ASKED + SAID),
        (
            chat(
                [{"type": "image", "text": None, "image": None}, {"type": "text", "text": "Q"}], "A"
            )
            | {"images": ["a.jpg"]},
            IMAGE,
        ),
        # speakers
        (entries(("Human", "Q"), ("ChatGPT", "A")), ASKED + SAID),
        (entries(("user", "Q"), ("bing", "A")), ASKED + SAID),
        (
            {
                "conversations": [
                    {"role": "user", "content": "Q"},
                    {"role": "model", "content": "A"},
                ]
            },
            ASKED + SAID,
        ),
        (
            {"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            ASKED + SAID,
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q", "from": None},
                    {"role": "assistant", "content": "A"},
                ]
            },
            ASKED + SAID,
        ),
        (
            entries(("human", "Q"), ("gpt", "call"), ("tool", "9"), ("gpt", "A")),
            f"{ASKED}{{ call$}}USER: 9 ASSISTANT:{SAID}",
        ),
        # ways to name an image
        *(
            (chat([{"type": "image", key: "a.jpg"}, {"type": "text", "text": "Q"}], "A"), IMAGE)
            for key in ("image", "url", "path")
        ),
        (
            chat(
                [
                    {"type": "image_url", "image_url": {"url": "a.jpg"}},
                    {"type": "text", "text": "Q"},
                ],
                "A",
            ),
            IMAGE,
        ),
        (chat([{"image": "a.jpg"}, {"text": "Q"}], [{"text": "A"}]), IMAGE),
        (talk("<image>\nQ", images=[{"path": "a.jpg", "bytes": None}]), IMAGE),
        (talk("<image>\nQ", image={"url": "a.jpg"}), IMAGE),
        (talk("<image>\nQ", images=[INLINE]), f"<an inline image>\n{ASKED}{SAID}"),
        # where images stand
        (talk("Q\n<image>", image="a.jpg"), f"Q <a.jpg> ASSISTANT:{SAID}"),
        (talk("<image>", image="a.jpg"), f"<a.jpg> ASSISTANT:{SAID}"),
        (talk("<image><image>Q", images=["a", "b"]), f"<a>\n <b>\n{ASKED}{SAID}"),
        (
            chat([{"image": "a"}, {"type": "image"}, {"text": "Q"}], "A", images=["b"]),
            f"<a>\n <b>\n{ASKED}{SAID}",
        ),
        # what is learned
        (
            {
                "messages": [
                    {"role": "user", "content": "Q", "loss": None, "weight": 0.0},
                    {"role": "assistant", "content": "no", "loss": False},
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A", "weight": 1.0},
                ]
            },
            f"{ASKED} no$USER: {ASKED}{SAID}",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_shapes(write_lines: Write, record: Record, expected: str) -> None:
    (sample,) = read(
        ConversationSource([write_lines("a.jsonl", [record])], ImageFolder(Path("/i")))
    )
    assert not isinstance(sample, Rejected), sample.detail
    assert shown(sample.pieces) == expected


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        (entries(("gpt", "Hi!"), ("human", "Q"), ("gpt", "A")), "skips_leading_answers", None),
        (talk("Q", image="a.jpg"), "places_images_first", IMAGE),
        (talk("Q", images=["a", "b"]), "places_images_first", f"<a>\n <b>\n{ASKED}{SAID}"),
        (
            entries(("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B"), image="a.jpg"),
            "places_images_first",
            f"{IMAGE}USER: R ASSISTANT:{{ B$}}",
        ),
    ],
)
def test_what_an_option_allows(
    write_lines: Write, record: Record, options: str, expected: str | None
) -> None:
    file = write_lines("a.jsonl", [record])
    (refused,) = read(ConversationSource([file], ImageFolder(Path("/i"))))
    assert isinstance(refused, Rejected)
    assert {"skips": "skip", "places": "place"}[options.partition("_")[0]] in refused.detail
    (sample,) = read(ConversationSource([file], ImageFolder(Path("/i")), **{options: True}))  # type: ignore[arg-type]
    assert not isinstance(sample, Rejected)
    assert shown(sample.pieces) == (expected or ASKED + SAID)


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (entries(("human", "Q"), ("gpt", "A"), ("system", "S")), "behind other turns"),
        (entries(("human", "Q"), ("narrator", "A")), "'narrator' speaks, not one of human, user"),
        (talk("Q", None), "has no text under 'value' or 'content'"),
        (talk("Q", ""), r"turn 2 \(assistant\) is empty"),
        (talk("Q", system="One.") | {"conversations": []}, "no 'conversations'"),
        (entries(("system", "B"), ("human", "Q"), ("gpt", "A"), system="A"), "two system texts"),
        (chat([{"type": "image", "url": "a", "path": "b"}], "A"), "names several images"),
        (chat([{"type": "image", "url": "https://x.org/a.jpg"}], "A"), "nothing is fetched"),
        (talk("<image>", image={"name": "a.jpg"}), "names no image under one of"),
        (talk("<image>", image="data:image/png,x"), "it is not in base64"),
        (talk("<image>", image="data:image/png;base64,?"), "data:image/png;base64"),
        (talk("<video>", video=[]), "'video' names no frames"),
        (
            {"messages": [{"role": "user", "content": "Q", "loss": 1}]},
            "'loss' is 1 in a turn of user",
        ),
        (
            {"messages": [{"role": "assistant", "content": "A", "weight": 0.5}]},
            "'weight' is 0.5 in a turn of assistant",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A", "loss": 0},
                ]
            },
            "no answer in it is trained",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
            "calls a tool",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(write_lines: Write, record: Record, detail: str) -> None:
    file = write_lines("a.jsonl", [record])
    (refused,) = read(ConversationSource([file], ImageFolder(Path("/i"))))
    assert isinstance(refused, Rejected)
    assert re.search(detail, refused.detail), refused.detail


@pytest.mark.parametrize("key", ["system", "turn", "blank turn"])
def test_system_texts(write_lines: Write, key: str) -> None:
    record = {
        "system": talk("Q", system="Answer in French."),
        "turn": entries(("system", "Answer in French."), ("human", "Q"), ("gpt", "A")),
        "blank turn": entries(
            ("system", " "), ("human", "Q"), ("gpt", "A"), system="Answer in French."
        ),
    }[key]
    (sample,) = read(ConversationSource([write_lines("a.jsonl", [record])], ImageFolder(Path("/"))))
    assert not isinstance(sample, Rejected)
    first = sample.pieces[0]
    assert isinstance(first, RawText)
    assert first.text == "Answer in French. USER: Q ASSISTANT:"


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_nothing_is_absent_in_other_kinds(write_lines: Write, nothing: object) -> None:
    folder = ImageFolder(Path("/i"))
    pair = write_lines("p.jsonl", [{"image": "a.jpg", "caption": nothing, "text": "real"}])
    (sample,) = read(PairSource([pair], folder))
    assert not isinstance(sample, Rejected)
    for source, file in (
        (PairSource, write_lines("q.jsonl", [{"image": nothing, "caption": "c"}])),
        (InterleavedSource, write_lines("i.jsonl", [{"text_list": nothing, "image_info": []}])),
    ):
        (refused,) = read(source([file], folder))
        assert isinstance(refused, Rejected)
        assert refused.reason in ("missing key", "no image", "empty text")
    (refused,) = read(TextSource([write_lines("t.jsonl", [{"text": nothing}])]))
    assert isinstance(refused, Rejected)
    assert refused.reason == "missing key"

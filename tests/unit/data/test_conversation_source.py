"""Instruction data of every make becomes conversations, or is rejected with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.records import Rejected, read
from vila_mc.data.sources.video import FramePolicy
from vila_mc.flow import RawImage, RawSample, RawText

Write = Callable[..., Path]
FOLDER = ImageFolder(Path("images"))


def reasons(results: list[RawSample | Rejected]) -> list[str]:
    return [result.reason for result in results if isinstance(result, Rejected)]


def test_details_do_not_grow_with_the_record(write_lines: Write) -> None:
    (result,) = talks(write_lines, {"conversations": said(*["Q"] * 9999)})
    assert 500 < len(result.detail) < 510


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": v} for n, v in enumerate(values)]


def test_conversations_from_an_array(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    one = {"id": 1, "image": "a.jpg", "conversations": said("<image>\nQ", "A")}
    two = {"id": 2, "conversations": said("Q", "A")}
    three = {"id": 3, "images": ["a", "b"], "conversations": said("<image><image>Q", "A")}
    file.write_text(json.dumps([one, two, three]))
    samples = list(read(ConversationSource([file], FOLDER)))
    found = [
        [piece.name for piece in sample.pieces if isinstance(piece, RawImage)] for sample in samples
    ]
    assert found == [["a.jpg"], [], ["a", "b"]]
    assert [sample.place for sample in samples] == [1, 2, 3]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"conversations": said("<image>Q", "A")}, "1 <image> markers but 0 images"),
        ({"image": "a", "conversations": said("Q", "A")}, "0 <image> markers but 1 images"),
        ({"image": "a", "images": ["a"], "conversations": said("Q", "A")}, "both 'image'"),
        ({"conversations": said("Q")}, "the turns are user"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "the turns are none"),
        ({"conversations": ["x"]}, "x is no turn"),
        ({"conversations": said("Q", "<image>")}, "a gpt turn holds <image>"),
        ({"conversations": said("Q", "<video>")}, "a gpt turn holds <video>; as text, write it"),
        ({"conversations": said("<video>Q", "A")}, "1 <video> markers but no 'video'. Name it"),
        ({"conversations": said("<video>Q", "A"), "video": None}, "1 <video> markers but no"),
        ({"conversations": said("Q<video>", "A", "<video>", "B"), "video": ""}, "names no frames"),
        (
            {"image": "a", "conversations": said("<image><video>Q", "A")},
            "1 <video> markers but no 'video'",
        ),
        (
            {"video": ["a"], "conversations": said("<video>Q", "<video>")},
            "a gpt turn holds <video>",
        ),
        ({}, "no 'conversations', 'messages'"),
    ],
)
def test_conversations_that_are_none(
    write_lines: Write, record: dict[str, object], detail: str
) -> None:
    (result,) = read(ConversationSource([write_lines("a.jsonl", [record])], FOLDER))
    assert isinstance(result, Rejected)
    assert detail in result.detail


def talks(write_lines: Write, *records: object, **options: Any) -> list[Any]:
    images = options.pop("images", FOLDER)
    file = write_lines("talks.jsonl", records)
    return list(read(ConversationSource([file], images, **options)))


def words(sample: RawSample) -> str:
    """Trained text in braces, images as <name>, without the template's system text."""
    out = ""
    for piece in sample.pieces:
        if isinstance(piece, RawImage):
            out += f"<{piece.name}>"
        else:
            out += f"{{{piece.text}}}" if piece.is_trained else piece.text
    return out.partition("USER: ")[2]


def test_messages(write_lines: Write) -> None:
    asked = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "Q "}, {"type": "image"}]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "B"},
    ]
    (sample,) = talks(write_lines, {"messages": messages, "images": []} | {"images": ["b.jpg"]})
    assert isinstance(sample.pieces[0], RawText)
    assert sample.pieces[0].text == "Be kind. USER: "
    assert [piece.name for piece in sample.pieces if isinstance(piece, RawImage)] == [
        "a.jpg",
        "b.jpg",
    ]


def test_share_gpt_and_questions(write_lines: Write) -> None:
    turns = [
        {"from": "system", "value": "S"},
        {"from": "user", "value": "Q"},
        {"from": "assistant", "value": "A"},
    ]
    samples = talks(write_lines, {"conversations": turns}, {"question": "Q", "answer": "A"})
    assert [words(sample) for sample in samples] == ["Q ASSISTANT:{ A}"] * 2


def test_frames_of_a_video(write_lines: Write, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for number in range(20):
        (tmp_path / "clip" / f"{number:02}.jpg").touch()
    (tmp_path / "clip" / "notes.txt").touch()
    records = [
        {"video": ["x.jpg", "y.jpg"], "conversations": said("<video>\nQ", "A")},
        {"video": "clip", "conversations": said("Q <video>", "A")},
    ]
    found = talks(write_lines, *records, images=ImageFolder(tmp_path), frames=FramePolicy(3))
    listed, folder, others = found
    assert (others.place, others.reason) == (2, "not read")
    assert others.detail == "1 files among the frames are no images: clip/notes.txt"
    assert words(listed) == "<x.jpg>\n <y.jpg>\nQ ASSISTANT:{ A}"
    assert words(folder) == "Q <clip/00.jpg>\n <clip/10.jpg>\n <clip/19.jpg> ASSISTANT:{ A}"
    one, _, _ = talks(
        write_lines, records[1], records[0], images=ImageFolder(tmp_path), frames=FramePolicy(1)
    )
    assert "<clip/10.jpg>" in words(one)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"video": "a.avi", "conversations": said("<video>", "A")}, "video file"),
        ({"video": "a.M3U8", "conversations": said("<video>", "A")}, "video file"),
        ({"video": "none", "conversations": said("<video>", "A")}, "missing image"),
        ({"video": "../up", "conversations": said("<video>", "A")}, "bad image name"),
        ({"video": [], "conversations": said("<video>", "A")}, "bad conversation"),
        ({"video": ["a"], "conversations": said("Q", "A")}, "bad conversation"),
        ({"video": ["a"], "conversations": said("<video><image>", "A")}, "bad conversation"),
        (
            {"video": ["a"], "conversations": said("<video>", "A", "<video>", "B")},
            "bad conversation",
        ),
        ({"image": "http://x.org/a.jpg", "conversations": said("<image>", "A")}, "bad image name"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "bad conversation"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad conversation"),
        ({"messages": "x"}, "missing key"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "bad conversation"),
        (
            {
                "image": "a",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": "<image>"}],
                    }
                ],
            },
            "bad conversation",
        ),
    ],
)
def test_more_conversations_that_are_none(
    write_lines: Write, tmp_path: Path, record: dict[str, object], reason: str
) -> None:
    assert reasons(talks(write_lines, record, images=ImageFolder(tmp_path))) == [reason]

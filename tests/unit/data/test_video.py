"""Frames of video files: those that were asked for, the same every time, or a reason why not."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import videos
from tests.support.videos import FPS, KINDS, SIZE
from vila_mc.data.image_codec import open_image
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources import video
from vila_mc.data.sources.conversations import ConversationsOptions, ConversationSource
from vila_mc.data.sources.image_files import ImageFolder, index_tars
from vila_mc.data.sources.records import Rejected, RejectionError, read
from vila_mc.data.sources.video import FramePolicy, read_frames, spread
from vila_mc.errors import ConfigError
from vila_mc.flow import ImagePiece, RawImage, RawSample, RawText


@pytest.fixture(scope="module")
def av() -> Any:
    return pytest.importorskip("av", reason="PyAV is not installed (the extra video)")


@pytest.fixture(scope="module")
def make_video(av: Any) -> Callable[..., bytes]:
    return videos.make_video


def numbers(frames: Sequence[video.Frame]) -> list[int]:
    """Which frames of the video they are, by what they show."""
    found = []
    for frame in frames:
        image = open_image(frame.image.source, "a frame")
        assert (image.format, image.size, frame.image.sides) == ("JPEG", SIZE, SIZE)
        found.append(round(float(np.asarray(image)[30:, 30:].mean()) / 5))
    return found


CHOSEN = [
    (FramePolicy(), spread(list(range(48)), 8)),
    (FramePolicy(3), [0, 24, 47]),
    (FramePolicy(1), [24]),
    (FramePolicy(100), list(range(48))),
    (FramePolicy(100, fps=2), [0, 12, 24, 36]),
    (FramePolicy(100, fps=5), [0, 4, 9, 14, 19, 24, 28, 33, 38, 43]),
    (FramePolicy(3, fps=2), [0, 24, 36]),
    (FramePolicy(100, fps=1e6), list(range(48))),
    (FramePolicy(100, fps=0.01), [0]),
]


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_that_were_asked_for(name: str, make_video: Callable[..., bytes]) -> None:
    """By number or by time; found from the key frame before, they are those of reading it all."""
    file = RawImage(make_video(name), name)
    whole = read_frames(file, FramePolicy(100))
    for policy, expected in CHOSEN:
        found = read_frames(file, policy)
        assert numbers(found) == expected
        for frame, number in zip(found, expected, strict=True):
            assert frame.seconds == pytest.approx(number / FPS, abs=1e-3)  # webm has milliseconds
            assert frame.image.source == whole[number].image.source
            assert frame.image.name == f"{name} at {frame.seconds:.1f} s"


def test_one_frame_is_a_video(make_video: Callable[..., bytes]) -> None:
    file = RawImage(make_video("a.mp4", frames=1), "a.mp4")
    for policy in (FramePolicy(), FramePolicy(fps=3)):
        assert numbers(read_frames(file, policy)) == [0]


def refusal(data: bytes, name: str = "a.mp4", **policy: Any) -> str:
    with pytest.raises(RejectionError) as caught:
        read_frames(RawImage(data, name), FramePolicy(**policy))
    assert caught.value.reason == "unusable video"
    return caught.value.detail


def test_broken_files(make_video: Callable[..., bytes]) -> None:
    """Damaged, cut off, or files that would have PyAV read others."""
    mp4, webm = make_video("a.mp4"), make_video("d.webm")
    middle = len(mp4) // 2
    assert "a.mp4 is damaged" in refusal(mp4[:middle])
    assert "is cut off: it ends after" in refusal(webm[: len(webm) // 2], "d.webm")
    assert "a.mp4 is damaged" in refusal(webm)  # the kind that its name says, whatever is in it
    damaged = mp4[:middle] + bytes(60) + mp4[middle + 60 :]
    assert "a.mp4 is damaged" in refusal(damaged, most=100)
    for name in ("a.mp4", "d.webm"):
        for content in (b"", b"junk" * 99, b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", b"ffconcat"):
            assert "is damaged" in refusal(content, name)


def test_limits(make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    mp4 = make_video("a.mp4")
    assert "takes 1.96 seconds; at most 1 are" in refusal(mp4, max_seconds=1)
    assert "takes 1.96 seconds; at most 0.1 are" in refusal(mp4, max_seconds=0.1)
    assert "takes 1.96 seconds; at most 1.95 are" in refusal(mp4, max_seconds=1.95)
    assert "96 x 64 = 6,144 pixels; 1 to 6,143" in refusal(mp4, max_pixels=6143)
    narrow = make_video("e.mkv", frames=2, size=(4096, 16))
    assert "one side is more than 200 times" in refusal(narrow, "e.mkv")
    monkeypatch.setattr(video, "_MOST_PACKETS", 47)
    assert "more than 47 frames" in refusal(mp4)
    monkeypatch.setattr(video, "_MOST_PIXELS", 6000)
    assert "1 to 6,000" in refusal(mp4)


def test_a_file_that_is_too_large_or_missing(
    tmp_path: Path, av: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(RejectionError, match="missing image: there is no file"):
        read_frames(RawImage(path, "a.mp4"), FramePolicy())
    path.write_bytes(b"12345")
    monkeypatch.setattr(video, "MAX_VIDEO_BYTES", 4)
    with pytest.raises(RejectionError, match=r"has 5 bytes; at most 4 are read"):
        read_frames(RawImage(path, "a.mp4"), FramePolicy())


def test_without_pyav_the_record_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(
        RejectionError, match=r"video file: x.mp4: .*pip install 'vila_mc\[video\]'"
    ):
        read_frames(RawImage(b"", "x.mp4"), FramePolicy())


@pytest.mark.parametrize("option", ["fps", "max_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_numbers(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} is .*greater than 0"):
        FramePolicy(**{option: value})


ASKED = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Grey"}]


def sample_of(folder: Path, **options: Any) -> RawSample | Rejected:
    file = folder / "talk.jsonl"
    file.write_text(json.dumps({"video": "a.mp4", "conversations": ASKED}))
    options.setdefault("images", ImageFolder(folder))
    (found,) = read(ConversationSource([file], **options))
    return found


@pytest.mark.parametrize("in_archive", [False, True])
def test_a_conversation_about_a_video_file(
    tmp_path: Path, make_video: Callable[..., bytes], in_archive: bool
) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video("a.mp4"))
    images: Any = ImageFolder(tmp_path)
    if in_archive:
        with tarfile.open(tmp_path / "videos.tar", "w") as tar:
            tar.add(tmp_path / "a.mp4", "a.mp4")
        images = index_tars([tmp_path / "videos.tar"], tmp_path / "index")
    sample = sample_of(tmp_path, frames=FramePolicy(4, fps=2), images=images, writes_times=True)
    assert isinstance(sample, RawSample)
    names = [piece.name for piece in sample.pieces if isinstance(piece, RawImage)]
    assert names == [f"a.mp4 at {second} s" for second in ("0.0", "0.5", "1.0", "1.5")]
    text = "".join(p.text if isinstance(p, RawText) else "|" for p in sample.pieces)
    times = "\n".join(f"<{second} seconds> |" for second in ("0.0", "0.5", "1.0", "1.5"))
    assert f"{times}\nWhat?" in text
    sample = sample_of(tmp_path, frames=FramePolicy(2), images=images)
    assert isinstance(sample, RawSample)
    assert "seconds" not in "".join(p.text for p in sample.pieces if isinstance(p, RawText))


def test_a_broken_video_is_a_rejected_record(tmp_path: Path, av: Any) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    found = sample_of(tmp_path)
    assert isinstance(found, Rejected)
    assert (found.reason, found.place) == ("unusable video", 1)


@pytest.mark.parametrize("options", [dict(frames=FramePolicy(fps=1)), dict(writes_times=True)])
def test_images_have_no_times(tmp_path: Path, options: dict[str, Any]) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"video": ["1.jpg", "2.jpg"], "conversations": ASKED}))
    (found,) = read(ConversationSource([file], ImageFolder(tmp_path), **options))
    assert isinstance(found, Rejected)
    assert "of which nobody knows when they are shown" in found.detail


def test_options_that_are_not_used_leave_no_trace(tmp_path: Path, tokenizer_path: Path) -> None:
    """A set of before goes on: its manifest names none of them."""
    (tmp_path / "x.jsonl").write_text("{}")
    given = dict(input=(str(tmp_path / "x.jsonl"),), output="set", tokenizer=tokenizer_path)
    plain = ConversationsOptions(**given).facts()
    assert not {"fps", "max_seconds", "frame_times"} & plain.keys()
    used = ConversationsOptions(**given, fps=2.0, max_seconds=9.0, frame_times=True).facts()
    assert used == plain | {"fps": 2.0, "max_seconds": 9.0, "frame_times": True}


def test_a_video_becomes_images_of_a_set(
    tmp_path: Path, tokenizer_path: Path, make_video: Callable[..., bytes]
) -> None:
    """Decoded once and stored: what training reads is the same every time."""
    (tmp_path / "a.mp4").write_bytes(make_video("a.mp4"))
    lines = [json.dumps({"video": name, "conversations": ASKED}) for name in ("a.mp4", "b.mp4")]
    (tmp_path / "b.mp4").write_bytes(b"broken")
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    options = ConversationsOptions(
        input=(str(tmp_path / "talk.jsonl"),),
        output=str(tmp_path / "set"),
        tokenizer=tokenizer_path,
        max_frames=3,
    )
    made = []
    for name in ("one", "two"):
        result = preprocess(
            options.source(),
            tmp_path / name,
            "multimodal",
            tokenizer_path,
            facts=options.facts(),
            limit=RejectionLimit(1),
        )
        assert result.rejected == {"unusable video": 1}
        made.append((tmp_path / f"{name}.bin").read_bytes())
    assert made[0] == made[1]
    reader = IndexedReader(tmp_path / "one")
    frames = [piece for piece in reader.sample(0) if isinstance(piece, ImagePiece)]
    levels = [np.asarray(Image.open(io.BytesIO(bytes(f.data))))[30:, 30:].mean() for f in frames]
    assert [round(float(level) / 5) for level in levels] == [0, 24, 47]
    assert reader.sides.tolist() == [list(SIZE)] * 3

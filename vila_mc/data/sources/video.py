"""Frames of a video file, as images with the seconds at which they are shown.

PyAV (the extra ``video``) decodes, with one thread and from a fixed kind of container, so that no
file can name another one or an address. A file is read twice: first its packets alone, which tell
when each frame is shown; then, from the key frame before each time that is wanted, what leads up to
it. What the header says of length is not believed, but a file that has less is cut off.
"""

import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from vila_mc.data.image_codec import MAX_ASPECT_RATIO
from vila_mc.data.images import DEFAULT_MAX_PIXELS, as_jpeg
from vila_mc.data.sources.file_kinds import open_regular
from vila_mc.data.sources.records import RejectionError
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import RawImage

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mp4",
    ".webm": "matroska",
    ".mkv": "matroska",
}
"""What their files are called, and which of PyAV's readers opens them."""
MOST_FRAMES = 8
"""Frames of a video that VILA looks at."""
DEFAULT_MAX_SECONDS = 3600.0
MAX_VIDEO_BYTES = 8 << 30
"""Larger files are not even opened."""

_MOST_PIXELS = 8192 * 4608
"""Of a frame: a decoder keeps some 16 of them. 8K is as large."""
_MOST_PACKETS = 1 << 20
"""Frames that a file may have: five hours at 60 a second."""
_LEAST_SHARE, _SLACK_SECONDS = 0.95, 0.5
"""Of the duration in a header, what a whole file has at least; of sound, too."""
_UNUSABLE = "unusable video"


@dataclass(frozen=True, slots=True)
class FramePolicy:
    """Which frames of a video are kept.

    Raises:
        ConfigError: a number is out of range.
    """

    most: int = MOST_FRAMES
    """Most frames that are kept, spread evenly from the first to the last of those asked for."""
    fps: float | None = None
    """Frames asked for in a second; None: all that there are."""
    max_seconds: float = DEFAULT_MAX_SECONDS
    """Longest video."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest frame."""

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("max_seconds", self.max_seconds)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; it must be greater than 0.", option=name)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video."""

    image: RawImage
    """A JPEG of quality 95."""
    seconds: float
    """When it is shown, from the first frame on."""


def is_video(name: str) -> bool:
    """Whether a file of that name is a video that can be read."""
    return _ending(name) in CONTAINERS


def read_frames(file: RawImage, policy: FramePolicy) -> list[Frame]:
    """The frames of a video that a policy keeps, in order; no frame twice.

    Args:
        file: the video, as its record names it.
        policy: which frames.

    Raises:
        RejectionError: PyAV is not installed; the file is missing, too large, too long or damaged,
            or holds no frame.
    """
    if find_spec("av") is None:
        raise RejectionError(
            "video file",
            f"{file.name}: reading it needs PyAV (pip install 'vila_mc[video]'); or give its "
            "frames as images, or their folder",
        )
    import av

    try:
        with (
            _opened(file) as stream,
            av.open(stream, format=CONTAINERS[_ending(file.name)]) as container,
        ):
            kept = list(_kept(container, file.name, policy))
    except RejectionError:
        raise
    except MemoryError:
        raise
    except FileNotFoundError:
        raise RejectionError("missing image", f"there is no file {file.source!s:.200}") from None
    except DataError as error:
        raise RejectionError("missing image", str(error)) from None
    except Exception as error:  # PyAV raises nearly anything on damaged data
        what = getattr(error, "strerror", None) or error
        raise RejectionError(_UNUSABLE, f"{file.name} is damaged: {what}") from None
    if not kept:
        raise RejectionError(_UNUSABLE, f"{file.name} holds no frame that can be decoded")
    return kept


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _opened(file: RawImage) -> BinaryIO:
    """Raises OSError, DataError; RejectionError: it is too large."""
    if isinstance(file.source, bytes):
        return io.BytesIO(file.source)
    if (size := file.source.stat().st_size) > MAX_VIDEO_BYTES:
        raise RejectionError(
            _UNUSABLE, f"{file.name} has {size:,} bytes; at most {MAX_VIDEO_BYTES:,} are read"
        )
    return open_regular(file.source)


def _kept(container: Any, name: str, policy: FramePolicy) -> Iterator[Frame]:
    """Raises RejectionError, and what PyAV raises."""
    stream = container.streams.best("video")  # no cover picture
    if stream is None:
        raise RejectionError(_UNUSABLE, f"{name} holds no pictures")
    codec = stream.codec_context
    codec.thread_count = 1
    codec.options = {"err_detect": "explode"}  # rather than make something up for what is damaged
    most = min(policy.max_pixels, _MOST_PIXELS)
    _require_size(name, codec.width, codec.height, most)
    shown, keys = _times(container, stream, name)
    base: Fraction = stream.time_base
    seconds = float((shown[-1] - shown[0]) * base)
    if seconds > policy.max_seconds:
        raise RejectionError(
            _UNUSABLE,
            f"{name} takes {math.ceil(100 * seconds) / 100:,g} seconds; at most "
            f"{policy.max_seconds:,g} are allowed (the option max_seconds)",
        )
    for frame in _decoded(container, stream, _wanted(shown, base, policy), keys):
        _require_size(name, frame.width, frame.height, most)
        at = float((frame.pts - shown[0]) * base)
        picture = frame.to_image()
        image = RawImage(as_jpeg(picture), f"{name} at {at:.1f} s", picture.size)
        yield Frame(image, at)


def _times(container: Any, stream: Any, name: str) -> tuple[list[int], list[int]]:
    """When frames are shown, and which of these times key frames have; both ascend.

    Raises:
        RejectionError: there is none, there are too many, or fewer than the header says.
    """
    shown: list[int] = []
    keys: list[int] = []
    end = 0.0
    for packet in container.demux():
        if packet.pts is None or packet.is_discard:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream:
            shown.append(packet.pts)
            keys += [packet.pts] if packet.is_keyframe else []
        if len(shown) > _MOST_PACKETS:
            raise RejectionError(_UNUSABLE, f"{name} has more than {_MOST_PACKETS:,} frames")
    if not shown or not keys:
        raise RejectionError(_UNUSABLE, f"{name} holds no frame")
    promised = (container.duration or 0) / 1e6
    if len(shown) < stream.frames:
        what = f"it has {len(shown):,} of {stream.frames:,} frames"
        raise RejectionError(_UNUSABLE, f"{name} is cut off: {what}")
    if end < promised * _LEAST_SHARE - _SLACK_SECONDS:
        what = f"it ends after {end:,.1f} of {promised:,.1f} seconds"
        raise RejectionError(_UNUSABLE, f"{name} is cut off: {what}")
    return sorted(set(shown)), sorted(keys)


def _wanted(shown: Sequence[int], base: Fraction, policy: FramePolicy) -> list[int]:
    """Times of the frames that are kept, ascending."""
    if policy.fps is None:
        return spread(list(shown), policy.most)
    step = 1 / (Fraction(policy.fps) * base)
    # Frames that are still shown at a multiple of the step: one lies before the next frame.
    first, before = shown[0], shown[-2:][0]
    ends = (*shown[1:], shown[-1] + max(shown[-1] - before, 1))
    times = [
        time
        for time, end in zip(shown, ends, strict=True)
        if math.ceil((time - first) / step) * step < end - first
    ]
    return spread(times, policy.most)


def spread[Item](items: list[Item], most: int) -> list[Item]:
    """At most ``most`` of some items, evenly from the first to the last."""
    if len(items) <= most:
        return items
    if most == 1:
        return [items[len(items) // 2]]
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def _decoded(
    container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[int]
) -> Iterator[Any]:
    """For each time the first frame that is shown then or later, else the last; none twice."""
    container.seek(keys[0], stream=stream)
    frames, last = container.decode(stream), None
    given = -math.inf
    for time in wanted:
        if last is not None and last.pts >= time:
            pass  # it has been read on the way to an earlier one
        else:
            key = keys[max(bisect_right(keys, time) - 1, 0)]
            if last is not None and key > last.pts:
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts is not None and (last is None or frame.pts > last.pts):
                    last = frame
                    if frame.pts >= time:
                        break
        if last is not None and last.pts > given:
            given = last.pts
            yield last


def _require_size(name: str, width: int, height: int, most: int) -> None:
    """Raises RejectionError."""
    if not 0 < width * height <= most:
        raise RejectionError(
            _UNUSABLE,
            f"{name} is {width} x {height} = {width * height:,} pixels; 1 to {most:,} are allowed",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RejectionError(
            _UNUSABLE,
            f"{name} is {width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            "the other",
        )

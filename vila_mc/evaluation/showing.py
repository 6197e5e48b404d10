"""What is shown with a question: images, and the frames of videos."""

import re
from collections.abc import Sequence
from pathlib import Path

from vila_mc.data.sources.records import RejectionError
from vila_mc.data.sources.video import FramePolicy, is_video, read_frames
from vila_mc.data.turns import IMAGE_MARKER, VIDEO_MARKER
from vila_mc.errors import DataError
from vila_mc.flow import RawImage

_MARKERS = re.compile(f"{IMAGE_MARKER}|{VIDEO_MARKER}")


def images_of(question: str, files: Sequence[Path]) -> tuple[str, list[RawImage]]:
    """The images that files stand for, and the question with a marker for each of them.

    A video stands for its frames, chosen as preprocessing chooses them where no option says
    otherwise. Where the question has markers of its own, ``<video>`` is the place of a video's
    frames; without any they stand in front, as images do.

    Args:
        question: the user's words.
        files: images and videos, in the order of their markers.

    Raises:
        DataError: a video cannot be read, or markers and files differ.
    """
    frames = [_frames(path) if is_video(path.name) else [] for path in files]
    images = [
        image
        for path, of_video in zip(files, frames, strict=True)
        for image in of_video or [RawImage(path, str(path))]
    ]
    marked = _MARKERS.findall(question)
    if VIDEO_MARKER not in marked and (not any(frames) or not marked):
        return question, images
    wanted = [VIDEO_MARKER if of_video else IMAGE_MARKER for of_video in frames]
    if marked != wanted:
        shown = " ".join(wanted) or "none"
        raise DataError(
            f"the question has {' '.join(marked)}, but what is shown is {shown}. Give files in the "
            "order of their markers, or no marker, and they stand in front."
        )
    places = iter("\n".join([IMAGE_MARKER] * len(one)) for one in frames if one)
    return re.sub(VIDEO_MARKER, lambda _: next(places), question), images


def _frames(path: Path) -> list[RawImage]:
    try:
        return [frame.image for frame in read_frames(RawImage(path, str(path)), FramePolicy())]
    except RejectionError as error:
        raise DataError(f"{error.detail}.") from None

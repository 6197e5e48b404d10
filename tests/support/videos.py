"""Small video files, as bytes."""

import io

import numpy as np

FPS, FRAMES = 24, 48
SIZE = (96, 64)
KINDS = {
    "a.mp4": ("mp4", "libx264"),
    "b.mov": ("mov", "mpeg4"),
    "c.webm": ("webm", "libvpx-vp9"),
    "d.webm": ("webm", "libvpx"),
    "e.mkv": ("matroska", "libx264"),
}


def make_video(name: str, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> bytes:
    """Frame n is grey of 5 n; key frames, and frames that look ahead. Needs PyAV."""
    import av

    container, codec = KINDS[name]
    buffer = io.BytesIO()
    noise = np.random.default_rng(0)
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = 12
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * number % 250, np.uint8)
            pixels[:20, :20] = noise.integers(0, 256, pixels[:20, :20].shape)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()

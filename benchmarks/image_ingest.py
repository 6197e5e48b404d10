"""Image ingest against the decoder alone: pairs in WebDataset archives, every image checked.

    python benchmarks/image_ingest.py [--json FILE]

The images are synthetic JPEGs of 640 x 480 pixels and about 60 KB. The decoder is Pillow, as in
the check itself, over the same bytes in memory.
"""

import io
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from claims import Claim, median_ratio, parser, report
from PIL import Image

from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import run_cli

CAPTION = "A picture of coloured noise, number {}, as no camera would ever see it."
ARCHIVES = 4


def main() -> int:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1200, help="in all (default: 1200)")
    options.add_argument("--rounds", type=int, default=5, help="default: 5")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = [picture(seed) for seed in range(64)]
        files = write_archives(work, images, arguments.images)
        train_tokenizer([CAPTION.format(n) for n in range(500)], work / "t.model", 300)

        def ingest(workers: int) -> None:
            preprocess(
                PairSource(files, ImageFolder(work)),
                Path(tempfile.mkdtemp(dir=work)) / "set",
                "multimodal",
                work / "t.model",
                facts={},
                workers=workers,
            )

        def decode() -> None:
            for number in range(arguments.images):
                Image.open(io.BytesIO(images[number % len(images)])).load()

        alone, one, two = cpu_and_wall([decode, lambda: ingest(1), lambda: ingest(2)], arguments)
    size = sum(map(len, images)) / len(images) / 1000
    how = f"{arguments.images:,} JPEGs, {size:.0f} KB; median of {arguments.rounds} rounds"
    count = arguments.images
    claims = [
        Claim(
            "rate of ingest over the decoder's, per core",
            median_ratio([cost[0] for cost in alone], [cost[0] for cost in one]),
            "",
            0.85,
            how=f"{how}; CPU time of one process",
        ),
        Claim("ingest", count / median(cost[0] for cost in one), "images/CPU-s", how=how),
        Claim("decoder alone", count / median(cost[0] for cost in alone), "images/CPU-s", how=how),
        Claim(
            "two workers, their start included",
            count / median(cost[1] for cost in two),
            "images/s",
            how=how,
        ),
    ]
    return report(claims, arguments)


def cpu_and_wall(
    functions: Sequence[Callable[[], object]], arguments: Namespace
) -> list[list[tuple[float, float]]]:
    """(CPU seconds of this process, wall seconds) of each function in each round, in turn."""
    costs: list[list[tuple[float, float]]] = [[] for _ in functions]
    for turn in range(arguments.rounds + 1):  # the first warms up
        for function, measured in zip(functions, costs, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            cost = (time.process_time() - cpu, time.perf_counter() - wall)
            measured += [cost] if turn else []
    return costs


def picture(seed: int) -> bytes:
    """Smooth noise with grain, which compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    pixels = np.asarray(smooth.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
    noisy = (pixels + rng.normal(0, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_archives(folder: Path, images: list[bytes], count: int) -> list[Path]:
    """``count`` pairs spread over ``ARCHIVES`` files."""
    files = [folder / f"{number:05}.tar" for number in range(ARCHIVES)]
    for number, file in enumerate(files):
        with tarfile.open(file, "w") as archive:
            for key in range(number, count, ARCHIVES):
                members = ("jpg", images[key % len(images)]), ("txt", CAPTION.format(key).encode())
                for ending, data in members:
                    info = tarfile.TarInfo(f"{key:09}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return files


if __name__ == "__main__":
    run_cli(main)

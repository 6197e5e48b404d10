"""The loader against its own decoder, against webdataset and against megatron-energon.

Random order, decode, resize to 336, collate to batches of 8; JPEGs of 640 x 480, quality 85. All
run in one process and one thread, take turns, and are compared by CPU time, so that neither the
number of cores nor other load decides. The peers are installed into a folder of the benchmark
(``--peers``), never into the project's environment. They read tar files of the same images with
Pillow and give normalised float32 images, as their users do; lines marked u8 leave that out.
"""

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, median_ratio, parser, report
from mixes import jpeg, make_tokenizer
from PIL import Image

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import CLIP_MEAN, CLIP_STD, LanguageConfig, ModelConfig
from vila_mc.data.images import load_image
from vila_mc.data.indexed_writer import IndexedWriter
from vila_mc.data.loader import TrainingData
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.flow import EncodedImage, EncodedSample, EncodedText

SIZE, BATCH, NUM_IMAGES = 336, 8, 128
ROUNDS, BATCHES_PER_ROUND = 9, 4
PEERS = ("megatron-energon", "webdataset", "braceexpand")
PEERS_OF_PEERS = ("multi-storage-client", "mfusepy", "rapidyaml", "s3fs", "filetype", "click")
"""What megatron-energon imports besides torch, which is here already."""


def main() -> int:
    """Measure and print the table."""
    made = parser(__doc__)
    made.add_argument("--peers", type=Path, help="where the peers are, or are to be installed")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        return report(_measure(Path(name), arguments), arguments)


def _measure(folder: Path, arguments: Namespace) -> list[Claim]:
    pictures = [jpeg(seed) for seed in range(NUM_IMAGES)]
    runs: dict[str, Iterator[Any]] = {"bare": _bare(pictures), "ours": _ours(folder, pictures)}
    _install_peers(arguments.peers or folder / "peers")
    _write_tars(folder / "tars", pictures)
    for name, transform in (("", to_normalised), (" u8", to_u8)):
        runs[f"webdataset{name}"] = _webdataset(folder / "tars", transform)
        runs[f"energon{name}"] = _energon(folder / "tars", transform)
    seconds = _cpu_seconds(runs)
    images = BATCH * BATCHES_PER_ROUND

    def ratio(slower: str, faster: str, target: float | None) -> Claim:
        value = median_ratio(seconds[slower], seconds[faster])
        how = f"CPU time, median of {ROUNDS} rounds of {images} images each, in turn"
        return Claim(f"{faster} against {slower}", value, "x", target, "higher", how)

    rate = images / statistics.median(seconds["ours"])
    return [
        ratio("bare", "ours", 0.9),
        ratio("webdataset", "ours", 1.3),
        ratio("energon", "ours", 1.3),
        ratio("webdataset u8", "ours", None),
        ratio("energon u8", "ours", None),
        Claim("ours", rate, "images/CPU-s"),
        _threads_against_processes(pictures),
    ]


def _cpu_seconds(runs: dict[str, Iterator[Any]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, batches in runs.items():
            started = time.process_time()
            for _ in range(BATCHES_PER_ROUND):
                next(batches)
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
    return seconds


def _bare(pictures: list[bytes]) -> Iterator[None]:
    """Decode and resize, and nothing else."""
    at = 0
    while True:
        for _ in range(BATCH):
            load_image(pictures[at % len(pictures)], SIZE, "crop")
            at += 1
        yield


def _ours(folder: Path, pictures: list[bytes]) -> Iterator[Any]:
    path = make_tokenizer(folder)
    tokenizer = Tokenizer(path)
    with IndexedWriter(folder / "set", "multimodal", tokenizer) as writer:
        for picture in pictures:
            caption = tokenizer.encode("a picture of smooth shapes under fine grain")
            first = EncodedText((tokenizer.bos_id,), is_trained=False)
            last = EncodedText((*caption, tokenizer.eos_id), is_trained=True)
            writer.add(EncodedSample((first, EncodedImage(picture, 640, 480), last)))
        writer.finish({})
    data = DataConfig(
        blend=(BlendEntry(path=folder / "set"),), tokenizer=path, sequence_length=256, workers=0
    )
    model = ModelConfig(language=LanguageConfig(vocab_size=tokenizer.vocab_size))
    return TrainingData(
        data,
        model,
        micro_batch=BATCH,
        global_batch=BATCH,
        data_rank=0,
        data_size=1,
        needs_images=True,
    ).iterate(0)


def to_u8(image: Image.Image) -> torch.Tensor:
    """Short side to ``SIZE``, centre crop: [3, y, x] uint8."""
    width, height = image.size
    scale = SIZE / min(width, height)
    image = image.convert("RGB").resize(
        (int(width * scale), int(height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    cropped = image.crop((left, top, left + SIZE, top + SIZE))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()


def to_normalised(image: Image.Image) -> torch.Tensor:
    """The same in CLIP's normalised range: [3, y, x] float32."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return (to_u8(image).float() / 255 - mean) / std


Transform = Callable[[Image.Image], torch.Tensor]


def _install_peers(folder: Path) -> None:
    if not (folder / "webdataset").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder)]
        subprocess.run([*pip, "--no-deps", *PEERS], check=True)
        subprocess.run([*pip, *PEERS_OF_PEERS], check=True)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def _write_tars(folder: Path, pictures: list[bytes]) -> None:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number in range(shard, len(pictures), 2):
                caption = b"a picture of smooth shapes under fine grain"
                for suffix, data in (("jpg", pictures[number]), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _webdataset(folder: Path, transform: Transform) -> Iterator[Any]:
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=2)
        .repeat()
        .shuffle(64)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, str)
        .batched(BATCH)
    )
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=0))


def _energon(folder: Path, transform: Transform) -> Iterator[Any]:
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.flavors import CaptioningSample

    if not (folder / ".nv-meta").exists():
        command = "prepare --non-interactive --no-progress --split-ratio 1,0,0 --num-workers 1"
        options = ["--sample-type", "CaptioningSample"]
        options += ["--field-map", '{"image": "jpg", "caption": "txt"}', str(folder)]
        subprocess.run(
            [sys.executable, "-m", "megatron.energon.cli.main", *command.split(), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None

        def encode_sample(self, sample: CaptioningSample) -> CaptioningSample:
            sample.image = transform(sample.image)
            return sample

    from megatron.energon import SampleDecoder

    Encoder.decoder = SampleDecoder(image_decode="pilrgb")
    dataset = get_train_dataset(
        folder,
        batch_size=BATCH,
        shuffle_buffer_size=64,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    )
    return iter(get_loader(dataset))


_pictures: list[bytes] = []


def _take_pictures(pictures: list[bytes]) -> None:
    _pictures[:] = pictures


def _decode_batch(start: int) -> np.ndarray:
    picked = [_pictures[(start + k) % len(_pictures)] for k in range(BATCH)]
    return np.stack([load_image(picture, SIZE, "crop") for picture in picked])


def _threads_against_processes(pictures: list[bytes]) -> Claim:
    """Two workers that decode batches and hand them over, by wall time."""
    _take_pictures(pictures)
    processes = ProcessPoolExecutor(
        2, get_context("forkserver"), initializer=_take_pictures, initargs=(pictures,)
    )
    with ThreadPoolExecutor(2) as threads, processes:
        rates: list[list[float]] = [[], []]
        for turn in range(6):
            for pool, measured in zip((threads, processes), rates, strict=True):
                seconds = _drain(pool, range(0, 16 * BATCH, BATCH))
                if turn:
                    measured.append(seconds)
    value = median_ratio(rates[1], rates[0])
    how = "wall time, 2 workers each, median of 5 rounds of 128 images in turn"
    return Claim("threads against worker processes", value, "x", 1.0, "higher", how)


def _drain(pool: Executor, starts: Iterable[int]) -> float:
    started = time.perf_counter()
    for batch in pool.map(_decode_batch, starts):
        assert batch.shape == (BATCH, 3, SIZE, SIZE)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())

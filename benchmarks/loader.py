"""The loader against its own decoder, against webdataset and against megatron-energon.

Random order, decode, resize to 336, collate to batches of 8; JPEGs of 640 x 480, quality 85. They
take turns and are compared by CPU time, so that neither the number of cores nor other load decides.
Ours reads in one worker process, whose time counts; the peers read in this process, which costs
them least: they would send every batch through a pipe. They are installed into a folder of the
benchmark (``--peers``), never into the project's environment. They read tar files of the same
images with Pillow and give normalised float32 images, as their users do; lines marked u8 leave that
out.

Then worker processes against threads of the same function: how fast two of them read, and how long
a thread that calls torch's operations, as training does to launch kernels, is held up.
"""

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from claims import Claim, median_ratio, paired_seconds, parser, report
from mixes import jpeg, make_tokenizer
from PIL import Image

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.families import CLIP
from vila_mc.config.model import LanguageConfig, ModelConfig
from vila_mc.data.batches.loader import StepData, TrainingData
from vila_mc.data.images import load_image
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.flow import EncodedSample, ImagePiece, TextPiece

SIZE, BATCH, NUM_IMAGES, LENGTH = 336, 8, 128, 256
ROUNDS, BATCHES_PER_ROUND = 15, 4
LAUNCHES, AHEAD = 50_000, 4
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
    data, model = write_set(folder, pictures)
    with training_data(data, model, workers=1) as ours:
        runs: dict[str, Iterator[Any]] = {"bare": _bare(pictures), "ours": ours.iterate(0)}
        _drain(runs["ours"])
        own_bytes = psutil.Process(ours.worker_pids()[0]).memory_full_info().uss
        _install_peers(arguments.peers or folder / "peers")
        _write_tars(folder / "tars", pictures)
        for name, transform in (("", to_normalised), (" u8", to_u8)):
            runs[f"webdataset{name}"] = _webdataset(folder / "tars", transform)
            runs[f"energon{name}"] = _energon(folder / "tars", transform)
        seconds = _cpu_seconds(runs, ours.worker_pids())
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
        _processes_against_threads(data, model),
        *_waiting_for_the_lock(data, model),
        Claim("memory of a worker that no other process shares", own_bytes / 2**20, "MiB"),
    ]


def _cpu_seconds(runs: dict[str, Iterator[Any]], workers: list[int]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, batches in runs.items():
            mine, theirs = time.process_time(), cpu_seconds_of(workers)
            for _ in range(BATCHES_PER_ROUND):
                next(batches)
            mine = time.process_time() - mine
            wait_until_idle(workers)  # ours: what was taken has been read again
            if turn:  # the first warms up
                seconds[name].append(mine + cpu_seconds_of(workers) - theirs)
    return seconds


def cpu_seconds_of(workers: list[int]) -> float:
    """CPU time of the threads that live in some processes, to the nanosecond."""
    threads = (task for pid in workers for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) / 1e9 for task in threads)


def wait_until_idle(workers: list[int]) -> None:
    """Until all sleep: what was taken has been read again."""
    while any(psutil.Process(pid).status() != psutil.STATUS_SLEEPING for pid in workers):
        time.sleep(0.01)


def _bare(pictures: list[bytes]) -> Iterator[None]:
    """Decode and resize, and nothing else."""
    at = 0
    while True:
        for _ in range(BATCH):
            load_image(pictures[at % len(pictures)], SIZE, "crop")
            at += 1
        yield


def write_set(folder: Path, pictures: list[bytes]) -> tuple[DataConfig, ModelConfig]:
    """A set of one image and a caption a sample, and a model that reads it."""
    path = make_tokenizer(folder)
    tokenizer = Tokenizer(path)
    with IndexedWriter(folder / "set", "multimodal", tokenizer) as writer:
        for picture in pictures:
            caption = tokenizer.encode("a picture of smooth shapes under fine grain")
            first = TextPiece(np.array([tokenizer.bos_id]), is_trained=False)
            last = TextPiece(np.array([*caption, tokenizer.eos_id]), is_trained=True)
            writer.add(EncodedSample((first, ImagePiece(picture, "a picture"), last)))
        writer.finish({})
    blend = (BlendEntry(path=folder / "set"),)
    data = DataConfig(blend=blend, tokenizer=path, sequence_length=LENGTH)
    return data, ModelConfig(language=LanguageConfig(vocab_size=tokenizer.vocab_size))


def training_data(
    data: DataConfig, model: ModelConfig, workers: int, needs_images: bool = True
) -> TrainingData:
    """What one rank reads of it, in microbatches of ``BATCH``."""
    return TrainingData(
        replace(data, workers=workers),
        model,
        micro_batch=BATCH,
        global_batch=BATCH,
        data_rank=0,
        data_size=1,
        needs_images=needs_images,
    )


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
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP.channel_mean, CLIP.channel_std))
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


def _in_threads(data: DataConfig, model: ModelConfig, workers: int) -> Iterator[StepData]:
    """What the loader would be with threads: the same work, as far ahead."""
    of_thread = threading.local()

    def begin() -> None:
        of_thread.data = training_data(data, model, workers=0)

    def read(samples_seen: int) -> StepData:
        step: StepData = of_thread.data.step(samples_seen)
        return step

    waiting: deque[Future[StepData]] = deque()
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        for samples_seen in count(0, BATCH):
            waiting.append(pool.submit(read, samples_seen))
            if len(waiting) == 1 + 2 * workers:  # as in the loader
                yield waiting.popleft().result()


def _processes_against_threads(data: DataConfig, model: ModelConfig) -> Claim:
    """Two workers that read as fast as they can, by wall time."""
    with training_data(data, model, workers=2) as ours:
        readers = (ours.iterate(0), _in_threads(data, model, 2))
        processes, threads = paired_seconds([partial(_drain, reader) for reader in readers])
    how = "wall time, 2 workers each, median of 7 rounds of 128 images in turn"
    return Claim(
        "2 processes against 2 threads", median_ratio(threads, processes), "x", 0.95, "higher", how
    )


def _drain(batches: Iterator[Any]) -> None:
    for _ in range(NUM_IMAGES // BATCH):
        next(batches)


def _waiting_for_the_lock(data: DataConfig, model: ModelConfig) -> list[Claim]:
    """How long a thread that calls small operations is held up while one worker reads ahead."""
    with training_data(data, model, workers=1) as ours:
        readers = {"thread": _in_threads(data, model, 1), "process": ours.iterate(0)}
        blocked: dict[str, list[float]] = {name: [] for name in readers}
        value = torch.zeros(4)
        for turn in range(ROUNDS + 1):
            for name, batches in readers.items():
                for _ in range(AHEAD):
                    next(batches)
                seconds = _seconds_blocked(lambda: [value.add_(1) for _ in range(LAUNCHES)])
                if turn:
                    blocked[name].append(seconds)
    how = (
        f"wall time less CPU time and time in the run queue of {LAUNCHES:,} small operations, "
        f"median of {ROUNDS} rounds, while one worker reads {AHEAD * BATCH} images"
    )

    def claim(name: str, target: float | None) -> Claim:
        each = 1000 * statistics.median(blocked[name]) / (AHEAD * BATCH)
        return Claim(f"launches held up by a {name}, per image", each, "ms", target, "lower", how)

    return [claim("thread", None), claim("process", 0.05)]


def _seconds_blocked(work: Callable[[], object]) -> float:
    """How long this thread sleeps while it works: neither on a core nor waiting for one."""
    status = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def awake() -> float:
        return time.thread_time() + int(status.read_text().split()[1]) / 1e9

    started, awake_before = time.perf_counter(), awake()
    work()
    return max(0.0, time.perf_counter() - started - (awake() - awake_before))


if __name__ == "__main__":
    sys.exit(main())

"""Packing and balance on mixes like VILA's: padding, stragglers, time for 1 million samples.

A global batch of 16 ranks x 8 micro-batches of one row of 4096 positions is composed and dealt out
from the indexes of the datasets alone. "max/mean" compares the busiest rank or micro-batch with the
average one, as the mean over steps.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from claims import Claim, parser, report
from mixes import MIXES, SEQUENCE_LENGTH, VISUAL_TOKENS, jpeg, make_tokenizer, write_set

from vila_mc.data.batches.balance import deal_rows
from vila_mc.data.batches.blend import Blend
from vila_mc.data.batches.sampler import GlobalBatch, Sampler
from vila_mc.data.indexed.reader import IndexedReader

RANKS, PASSES = 16, 8
DECODER_PER_POSITION = 4 * 4096 + 3 * 11008
"""What a position of a 7B decoder costs outside attention, where a sample of n positions costs n^2
in attention (causal): 2 (4 h^2 + 3 h f) against 2 n^2 h operations a layer."""
MILLION = 1_000_000


def main() -> int:
    """Measure every mix and print the table."""
    arguments = parser(__doc__).parse_args()
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MIXES:
            claims += _mix(name, Path(folder))
        claims += _other_padding(Path(folder))
    return report(claims, arguments)


def _mix(name: str, folder: Path) -> list[Claim]:
    sources = MIXES[name]
    readers = []
    for source, share in sources.items():
        prefix = folder / f"{name}-{source.__name__}"
        sizes = source(np.random.default_rng(0), int(share * MILLION))
        write_set(prefix, sizes, make_tokenizer(folder), jpeg(0))
        readers.append(IndexedReader(prefix))
    blend = Blend.by_weights(list(sources.values()), [len(reader) for reader in readers], seed=1)
    packed = _sampler(blend, readers, packing=True)
    batches, seconds = _read_all(packed)
    unpacked = _sampler(blend, readers, packing=False)
    singles = [unpacked.at(start) for start in range(0, 60 * RANKS * PASSES, RANKS * PASSES)]
    positions = sum(int(batch.lengths.sum()) for batch in batches)
    waste = 1 - positions / (len(batches) * batches[0].num_rows * SEQUENCE_LENGTH)
    padded = 1 - np.mean([batch.lengths.mean() for batch in singles]) / SEQUENCE_LENGTH
    loads = [_loads(batch) for batch in batches]
    return [
        Claim(f"{name}: padding", 100 * waste, "%", 2, "lower", f"unpacked: {100 * padded:.0f} %"),
        *_stragglers(name, loads),
        _straggler(
            name,
            "images per rank and step, unpacked",
            [_loads(b)["images", "rank"] for b in singles],
        ),
        Claim(
            f"{name}: pack and balance 1 million samples",
            seconds,
            "s",
            3,
            "lower",
            "order, sizes from the index, packing, dealing to 16 ranks; one thread",
        ),
    ]


def _stragglers(name: str, loads: list[dict[tuple[str, str], float]]) -> list[Claim]:
    """How far the busiest rank and micro-batch are above the average, packed."""
    return [
        _straggler(
            name, "images per rank and step", [load["images", "rank"] for load in loads], 1.05
        ),
        _straggler(
            name, "attention per rank and step", [load["attention", "rank"] for load in loads], 1.05
        ),
        _straggler(
            name,
            "  with the lightest rows around the heaviest",
            [load["attention", "least"] for load in loads],
        ),
        _straggler(
            name, "images per micro-batch", [load["images", "pass"] for load in loads], 1.15
        ),
        _straggler(
            name, "decoder work per micro-batch", [load["decoder", "pass"] for load in loads], 1.15
        ),
        _straggler(
            name, "attention alone per micro-batch", [load["attention", "pass"] for load in loads]
        ),
        _straggler(
            name, "  the longest sample alone", [load["attention", "longest"] for load in loads]
        ),
        _straggler(
            name,
            "attention per micro-batch over the least possible",
            [load["attention", "pass"] / load["attention", "longest"] for load in loads],
            1.15,
        ),
    ]


def _other_padding(folder: Path) -> list[Claim]:
    """What packing wastes in small global batches, and without short samples to fill gaps."""
    alone, short = (
        IndexedReader(folder / f"pretrain-{source.__name__}") for source in MIXES["pretrain"]
    )
    claims = []
    for readers, name in (([alone, short], "pretrain"), ([alone], "documents alone")):
        blend = Blend.by_weights([1] * len(readers), [len(reader) for reader in readers], seed=1)
        for num_rows in (8, 64, 1024):
            sampler = _sampler(blend, readers, packing=True, num_rows=num_rows)
            filled, position, steps = 0, 0, max(2048 // num_rows, 4)
            for _ in range(steps):
                batch = sampler.at(position)
                filled += int(batch.lengths.sum())
                position += len(batch.samples)
            waste = 1 - filled / (steps * num_rows * SEQUENCE_LENGTH)
            claims.append(Claim(f"{name}: padding, {num_rows} rows", 100 * waste, "%"))
    return claims


def _sampler(
    blend: Blend, readers: list[IndexedReader], packing: bool, num_rows: int = RANKS * PASSES
) -> Sampler:
    return Sampler(
        blend,
        readers,
        num_rows=num_rows,
        sequence_length=SEQUENCE_LENGTH,
        tile_positions=VISUAL_TOKENS,
        packing=packing,
    )


def _read_all(sampler: Sampler) -> tuple[list[GlobalBatch], float]:
    """The batches of one million samples, and the seconds to compose and deal them."""
    batches, position = [], 0
    started = time.process_time()
    while position < MILLION:
        batches.append(sampler.at(position))
        deal_rows(batches[-1].costs(), RANKS, 1)
        position += len(batches[-1].samples)
    return batches, time.process_time() - started


def _loads(batch: GlobalBatch) -> dict[tuple[str, str], float]:
    """max/mean of each cost over ranks and over micro-batches."""
    images, squares = batch.costs().T
    decoder = squares + DECODER_PER_POSITION * SEQUENCE_LENGTH
    dealt = deal_rows(batch.costs(), RANKS, 1)
    found = {}
    for name, cost in (("images", images), ("attention", squares), ("decoder", decoder)):
        found[name, "rank"] = _max_over_mean(cost[dealt].sum(axis=(1, 2)))
        found[name, "pass"] = _max_over_mean(cost)
    ascending = np.sort(squares)
    heaviest = ascending[-1] + ascending[: PASSES - 1].sum()
    found["attention", "least"] = max(1.0, float(heaviest / (PASSES * squares.mean())))
    # No dealing of one row each can be more even than this.
    found["attention", "longest"] = max(1.0, float(batch.lengths.max()) ** 2 / squares.mean())
    return found


def _max_over_mean(values: np.ndarray) -> float:
    return float(values.max() / values.mean())


def _straggler(mix: str, what: str, values: list[float], target: float | None = None) -> Claim:
    how = f"max/mean of {len(values)} steps; worst step {max(values):.3f}"
    return Claim(f"{mix}: {what}", statistics.fmean(values), "max/mean", target, "lower", how)


if __name__ == "__main__":
    sys.exit(main())

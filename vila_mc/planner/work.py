"""What a layer computes, moves and sends: operators with their FLOPs and bytes, per microbatch.

Counts are of one rank. A product of ``[m, k]`` and ``[k, n]`` takes ``2 m n k`` FLOPs; what comes
before and after attention, and norms, count by the bytes that fused kernels read and write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vila_mc.planner.job import Job, Tower

HALF = 2
"""Bytes of an activation."""
Kind = Literal["product", "attention", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a forward pass."""

    name: str
    kind: Kind
    flops: float = 0
    """Of the forward pass. A product's backward pass takes as many for its input and as many for
    its weight; attention's, 2.5 times (it computes the scores again)."""
    moved: float = 0
    """Bytes read and written in the forward pass; twice as many in the backward pass."""
    has_weight: bool = False
    """Whether a weight may learn here."""
    is_quantised: bool = False
    """Whether it is computed in FP8 where the job is."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The operators of one layer, and the bytes of its sums over tensor-parallel ranks."""

    operators: tuple[Operator, ...]
    summed: float
    """Bytes of each of its two sums over tensor-parallel ranks."""


def _product(name: str, rows: float, inner: float, outer: float, quantised: bool) -> Operator:
    return Operator(
        name=name,
        kind="product",
        flops=2 * rows * inner * outer,
        moved=HALF * (rows * inner + inner * outer + rows * outer),
        has_weight=True,
        is_quantised=quantised,
    )


def decoder_layer(job: Job, in_fp8: bool = True) -> Layer:
    """One layer of the language model, in FP8 where the job is and ``in_fp8``."""
    decoder, tensor, rows = job.decoder, job.share.tensor, job.positions()
    heads = decoder.query_width() / tensor
    qkv, ffn = decoder.qkv_width() / tensor, decoder.ffn / tensor
    whole = tensor if job.engine.sequence else 1
    unfused = job.engine.attention == "unfused"  # which computes what the mask hides, too
    attended = job.length if unfused else job.attended / 2
    wide = ffn * (1 + decoder.gated)
    operators = [
        Operator(
            name="norms and sums", kind="memory", moved=HALF * 10 * rows * decoder.width / whole
        ),
        _product("query, key, value", rows, decoder.width, qkv, in_fp8),
        Operator(name="rotation", kind="memory", moved=HALF * 2 * rows * qkv),
        *_attention(job, rows, attended, heads, decoder.heads / tensor, job.length),
        _product("projection", rows, heads, decoder.width, in_fp8),
        _product("feed-forward in", rows, decoder.width, wide, in_fp8),
        Operator(name="activation", kind="memory", moved=HALF * rows * (wide + ffn)),
        _product("feed-forward out", rows, ffn, decoder.width, in_fp8),
    ]
    return Layer(tuple(operators), HALF * rows * decoder.width)


def tower_layer(job: Job, tower: Tower, in_fp8: bool = False) -> Layer:
    """One layer of the vision transformer, in FP8 where the job is and ``in_fp8``."""
    tensor = job.share.tensor
    rows = job.micro_batch * job.images * tower.positions / job.share.context
    width, ffn = tower.width / tensor, tower.ffn / tensor
    wide = ffn * (1 + tower.gated)
    operators = [
        Operator(name="norms and sums", kind="memory", moved=HALF * 10 * rows * tower.width),
        _product("query, key, value", rows, tower.width, 3 * width, in_fp8),
        *_attention(
            job,
            rows,
            tower.attended or tower.positions,
            width,
            tower.heads / tensor,
            tower.positions,
        ),
        _product("projection", rows, width, tower.width, in_fp8),
        _product("feed-forward in", rows, tower.width, wide, in_fp8),
        Operator(name="activation", kind="memory", moved=HALF * rows * (wide + ffn)),
        _product("feed-forward out", rows, ffn, tower.width, in_fp8),
    ]
    return Layer(tuple(operators), HALF * rows * tower.width)


def connector(job: Job, tower: Tower) -> tuple[Operator, ...]:
    """The connector: its matrices see each visual token once."""
    rows = job.micro_batch * job.images * tower.visual_tokens / job.share.context
    product = Operator(
        name="connector",
        kind="product",
        flops=2 * rows * tower.connector,
        moved=HALF * (tower.connector + 2 * rows * job.decoder.width),
        has_weight=True,
    )
    return (product,)


def head(job: Job) -> tuple[Operator, ...]:
    """Output layer and loss."""
    rows, vocab = job.positions(), job.decoder.vocab / job.share.tensor
    return (
        _product("output layer", rows, job.decoder.width, vocab, False),
        Operator(name="loss", kind="memory", moved=3 * 4 * rows * vocab),  # in fp32
    )


def _attention(
    job: Job, rows: float, attended: float, width: float, heads: float, length: int
) -> Iterator[Operator]:
    """Scores and their sums of values; without flash attention, scores pass through memory."""
    yield Operator(
        name="attention",
        kind="attention",
        flops=4 * rows * attended * width,
        moved=HALF * 4 * rows * width,
    )
    if job.engine.attention == "unfused":
        # Written once, scaled and masked, softmax and dropout read and write them: 8 times, whole.
        yield Operator(name="scores", kind="memory", moved=HALF * 8 * rows * length * heads)

"""LLM layers dealt to pipeline stages so that the slowest rank is as fast as it can be."""

from dataclasses import replace
from heapq import heapify, heapreplace

from vila_mc.planner.passes import PassTimes


def balanced_layers(times: PassTimes) -> tuple[int, ...]:
    """How many layers each stage should hold, in flow order, since vision and head take time, too.

    Every layer goes to the rank that has least to do so far, and there to the stage with fewest: of
    layers that all take the same, no other division has a faster slowest rank. Of ranks alike the
    last comes first, because the first ones hold more microbatches.
    """
    job = times.job
    chunks, pipeline = job.chunks(), job.share.pipeline
    num_layers = sum(chunk.layers for chunk in chunks)
    beside = [_seconds(times, index, 0) for index in range(len(chunks))]
    a_layer = sum(
        _seconds(times, index, chunk.layers) - beside[index] for index, chunk in enumerate(chunks)
    )
    a_layer /= num_layers
    counts = [min(chunk.layers, 1) for chunk in chunks]  # a dedicated stage of vision has none
    stages = [
        [number for number in range(rank, len(chunks), pipeline) if counts[number]]
        for rank in range(pipeline)
    ]
    load = [sum(beside[rank::pipeline]) + a_layer * len(stages[rank]) for rank in range(pipeline)]
    least = [(load[rank], -rank) for rank in range(pipeline) if stages[rank]]
    heapify(least)
    for _ in range(num_layers - sum(counts)):
        busy, minus_rank = least[0]
        counts[min(stages[-minus_rank], key=lambda number: (counts[number], -number))] += 1
        heapreplace(least, (busy + a_layer, minus_rank))
    return tuple(counts)


def _seconds(times: PassTimes, index: int, layers: int) -> float:
    """Of a microbatch in a chunk with so many of its layers, both ways."""
    job = times.job
    chunk = job.chunks()[index]
    if layers != chunk.layers:
        chunk = replace(chunk, layers=layers, learning=None, backward=None, in_fp8=None)
    passes = times.of(chunk, job.images, job.attended)
    return passes.forward + passes.backward

"""How many numbers a rank's weights are, and how many of them learn."""

from vila_mc.planner.job import Job, Stage
from vila_mc.planner.work import HALF


def rank_weights(job: Job, rank: int) -> float:
    """Numbers of a pipeline rank's weights, on one tensor-parallel rank."""
    chunks = job.chunks()[rank :: job.share.pipeline]
    return sum(_weights(job, one) if one.weights is None else one.weights for one in chunks)


def rank_learnt(job: Job, rank: int) -> float:
    """Of them, those that learn."""
    chunks = job.chunks()[rank :: job.share.pipeline]
    return sum(_learnt(job, one) if one.learnt is None else one.learnt for one in chunks)


def rank_gathered(job: Job, rank: int) -> float:
    """Bytes of its weights that data-parallel ranks gather after a step."""
    chunks = job.chunks()[rank :: job.share.pipeline]
    return HALF * rank_learnt(job, rank) - sum(one.gathered_in_fp8 for one in chunks)


def adapter_weights(job: Job) -> float:
    """Numbers of a layer's low-rank adapters, beside every matrix."""
    decoder = job.decoder
    inputs_and_outputs = (
        (decoder.width, decoder.qkv_width()),
        (decoder.query_width(), decoder.width),
        (decoder.width, (1 + decoder.gated) * decoder.ffn),
        (decoder.ffn, decoder.width),
    )
    return job.learns.adapters * sum(one + other for one, other in inputs_and_outputs)


def _weights(job: Job, chunk: Stage) -> float:
    decoder, tensor = job.decoder, job.share.tensor
    total = (chunk.layers * decoder.layer_weights() + _tables(job, chunk)) / tensor
    if job.learns.adapters:
        total += chunk.layers * adapter_weights(job) / tensor
    if chunk.has_vision and job.tower is not None:
        total += job.tower.layers * job.tower.layer_weights() / tensor + job.tower.connector
    return total


def _learnt(job: Job, chunk: Stage) -> float:
    learns, decoder, tensor, total = job.learns, job.decoder, job.share.tensor, 0.0
    if learns.language:
        total += chunk.layers * decoder.layer_weights() / tensor
    elif learns.adapters:
        total += chunk.layers * adapter_weights(job) / tensor
    total += learns.tables * _tables(job, chunk) / tensor
    if chunk.has_vision and job.tower is not None:
        total += learns.vision * job.tower.layers * job.tower.layer_weights() / tensor
        total += learns.connector * job.tower.connector
    return total


def _tables(job: Job, chunk: Stage) -> int:
    shares_one = job.decoder.tied and chunk.has_embedding
    tables = chunk.has_embedding + (chunk.has_head and not shares_one)
    return tables * job.decoder.table_weights()

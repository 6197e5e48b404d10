"""What a rank holds at the peak of a step, in bytes, by kind."""

from dataclasses import dataclass

from vila_mc.planner.constants import Constants
from vila_mc.planner.held import rank_learnt, rank_weights
from vila_mc.planner.job import Job, Stage, Tower
from vila_mc.planner.work import HALF


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank at the peak."""

    weights: float
    """With the copies of them in FP8."""
    gradients: float
    optimizer: float
    activations: float
    """Kept for backward passes, of all microbatches under way."""
    passing: float
    """What one pass needs beside them: the gradient of logits, a layer that is recomputed, or a
    tower of which nothing is kept."""

    def total(self) -> float:
        """All of it."""
        beside = self.activations + self.passing
        return self.weights + self.gradients + self.optimizer + beside


def rank_memory(job: Job, rank: int, constants: Constants) -> Memory:
    """What a pipeline rank holds at the peak of a step."""
    weights, learnt = rank_weights(job, rank), rank_learnt(job, rank)
    share, engine = job.share, job.engine
    members = share.data * share.context
    kept = members if engine.sharding == "weights" else 1
    graded = members if engine.sharding in ("gradients", "weights") else 1
    state = 1 if engine.sharding == "none" else members
    chunks = job.chunks()[rank :: share.pipeline]
    activations = sum(
        under_way(job, rank, number) * chunk_activations(job, chunk)
        for number, chunk in enumerate(chunks)
    )
    return Memory(
        weights=HALF * weights / kept + sum(chunk.fp8_copies for chunk in chunks),
        gradients=(engine.gradient_bytes + engine.kept_gradients) * learnt / graded,
        optimizer=12 * learnt / state,
        activations=activations * constants.kept[job.engine.name],
        passing=max(_passing(job, chunk) for chunk in chunks),
    )


def peak_memory(job: Job, constants: Constants) -> Memory:
    """Of the rank that holds most: of ranks with the same chunks the first, with most under way."""
    pipeline, chunks = job.share.pipeline, job.chunks()
    first = {chunks[rank::pipeline]: rank for rank in reversed(range(pipeline))}
    return max((rank_memory(job, rank, constants) for rank in first.values()), key=Memory.total)


def under_way(job: Job, rank: int, number: int) -> int:
    """Microbatches whose activations a rank's chunk ``number`` holds at most."""
    pipeline, virtual = job.share.pipeline, job.share.virtual
    if pipeline == 1:
        return 1
    ahead = (
        pipeline - rank
        if virtual == 1
        else (pipeline - rank - 1) * 2 + (virtual - 1) * pipeline + 1
    )
    full, rest = divmod(ahead, pipeline * virtual)
    within = min(max(rest - number * pipeline, 0), pipeline)
    return (
        min(full * pipeline + within, job.microbatches())
        if virtual > 1
        else min(ahead, job.microbatches())
    )


def chunk_activations(job: Job, chunk: Stage) -> float:
    """Bytes that one microbatch keeps in a chunk for its backward pass."""
    total = 0.0
    if chunk.has_vision and job.tower is not None:
        total += job.learning_tower() * tower_activations(job, job.tower)
        if job.learns.connector or job.learns.vision:
            total += job.held_images() / job.share.context * job.tower.connector_kept
    learning, backward = job.learning_layers(chunk), job.backward_layers(chunk)
    again = job.recomputed if job.recompute == "full" else 0.0
    whole = job.share.tensor if job.engine.sequence else 1
    inputs = HALF * job.positions() * job.decoder.width / whole
    adapted = bool(job.learns.adapters)
    for layers, learns in ((learning, True), (backward - learning, adapted)):
        total += layers * ((1 - again) * layer_activations(job, learns) + again * inputs)
    return total + _head_activations(job, chunk)


def _head_activations(job: Job, chunk: Stage) -> float:
    if not chunk.has_head:
        return 0.0
    whole = job.share.tensor if job.engine.sequence else 1
    logits = job.positions() * job.decoder.vocab / job.share.tensor
    return job.engine.loss_bytes * logits + 2 * HALF * job.positions() * job.decoder.width / whole


def layer_activations(job: Job, learns: bool) -> float:
    """Bytes that a layer keeps of one microbatch (arXiv 2205.05198, section 4, with attention that
    keeps no scores): inputs of norms and attention, and where weights learn of products."""
    decoder, tensor, rows = job.decoder, job.share.tensor, job.positions()
    whole = tensor if job.engine.sequence else 1
    wide = (2 + 2 * learns) * decoder.width / whole
    heads = (decoder.qkv_width() + decoder.query_width()) / tensor
    ffn = (1 + decoder.gated + learns) * decoder.ffn / tensor
    kept = HALF * (wide + heads + ffn) * rows
    copies = job.engine.turned * (decoder.heads + decoder.kv_heads) / tensor
    kept += HALF * (copies + job.engine.angles) * decoder.head_width * rows
    if job.engine.attention == "unfused" and job.recompute != "attention":
        kept += 5 * rows * job.length * decoder.heads / tensor
    return kept + 4 * rows * decoder.heads / tensor


def tower_activations(job: Job, tower: Tower) -> float:
    """Bytes that a layer of the tower keeps of one microbatch."""
    tensor = job.share.tensor
    rows = job.held_images() * tower.positions / job.share.context
    if job.recompute_vision:
        return HALF * rows * tower.width
    ffn = (tower.kept_wide + tower.gated) * tower.ffn / tensor
    return HALF * rows * (4 * tower.width + 4 * tower.width / tensor + ffn)


def tower_passing(job: Job, tower: Tower) -> float:
    """Bytes that a forward pass of a tower's layer needs where nothing of it is kept.

    Its feed-forward part, what stands around it, and the pixels, as they come and as patches.
    """
    images = job.held_images() / job.share.context
    rows = images * tower.positions
    ffn = (tower.kept_wide + tower.gated) * tower.ffn / job.share.tensor
    return HALF * rows * (4 * tower.width + ffn) + (1 + HALF) * images * tower.pixels


def connector_passing(job: Job, tower: Tower) -> float:
    """Bytes that the connector's backward pass needs, after that of the layers above it.

    Gradients of the sequence and of its visual tokens; of every such token what the connector
    computes anew, before and after the norm and the activation, and its gradient; gradients of the
    matrices, and half as many bytes again in fp32 while the norm's is taken out of them.
    """
    seen = job.held_images() / job.share.context * tower.visual_tokens
    return HALF * (job.positions() + 5 * seen) * job.decoder.width + 3 * tower.connector


def _passing(job: Job, chunk: Stage) -> float:
    """Beside what all microbatches under way keep, at the worst of four moments of a pass."""
    rows, tensor, head = job.positions(), job.share.tensor, _head_activations(job, chunk)
    is_split = job.engine.sequence and tensor > 1
    inputs = HALF * rows * job.decoder.width
    received = inputs / (tensor if is_split else 1) if job.share.pipeline > 1 else 0.0
    moments = [0.0]
    if chunk.has_head:
        logits = rows * job.decoder.vocab / tensor
        moments.append((HALF if job.engine.loss_bytes == 4 else 6) * logits + received)
    if job.backward_layers(chunk):
        # The gradient of gate and up, and what comes before they are one; the logits are gone.
        layer = HALF * rows * (2 + 2 * job.decoder.gated) * job.decoder.ffn / tensor - head
        if job.recompute == "full":
            layer += layer_activations(job, job.learning_layers(chunk) > 0)
        moments.append(layer + received)
    if chunk.has_vision and job.tower is not None:
        # The tower comes first: of its microbatch nothing else is there yet.
        seen = job.learning_tower() * tower_activations(job, job.tower)
        unseen = chunk_activations(job, chunk) - seen
        moments.append(tower_passing(job, job.tower) - unseen)
        if job.learns.connector:
            # Last: what its microbatch kept above it is gone.
            above = unseen - job.held_images() / job.share.context * job.tower.connector_kept
            moments.append(connector_passing(job, job.tower) - above + received)
    gathered = inputs if is_split and chunk.layers else 0.0  # the whole sequence, for products
    return max(moments) + gathered

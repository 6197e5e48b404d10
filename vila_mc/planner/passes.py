"""A microbatch's time in one chunk of the pipeline, and what it is made of."""

from dataclasses import dataclass, fields, replace

from vila_mc.planner.clock import Clock
from vila_mc.planner.job import Job, Stage
from vila_mc.planner.work import HALF, Layer, connector, decoder_layer, head, tower_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Seconds of a microbatch in one chunk."""

    forward: float = 0.0
    backward: float = 0.0
    sums: float = 0.0
    """Of both, what sums over tensor-parallel ranks take."""
    recomputed: float = 0.0
    """Of the backward pass, what computes the forward pass again."""
    vision: float = 0.0
    """Of both, what tower and connector take."""
    launch: float = 0.0
    """Of both, what waits for the host."""

    def __add__(self, other: "Passes") -> "Passes":
        sums = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in _FIELDS}
        return Passes(**sums)

    def __mul__(self, times: float) -> "Passes":
        return Passes(**{one.name: getattr(self, one.name) * times for one in _FIELDS})


_FIELDS = fields(Passes)
_PASSES = (True, True), (False, True), (False, False)
"""Of ``Job.layers_by_pass``: whether they learn, whether they have a backward pass."""


class PassTimes:
    """Times of microbatches of one job, each computed once, whatever chunks and images it meets."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job, self._clock = job, clock
        self._layers: dict[tuple[float, bool, bool, bool], Passes] = {}
        self._seen: dict[float, Passes] = {}
        self._head: Passes | None = None

    def of(self, chunk: Stage, images: float, attended: float) -> Passes:
        """A microbatch's time in a chunk.

        Args:
            chunk: of the pipeline.
            images: of a row, on average.
            attended: positions of the sample that a position stands in, on average.
        """
        job, total = self.job, Passes()
        if chunk.has_vision and job.tower is not None:
            total += self._vision(images)
        layers = job.layers_by_pass(chunk)
        in_fp8 = layers if chunk.in_fp8 is None else chunk.in_fp8
        for count, eight, (learns, goes_back) in zip(layers, in_fp8, _PASSES, strict=True):
            for number, is_fp8 in ((eight, True), (count - eight, False)):
                if number:
                    total += self._layer(attended, learns, goes_back, is_fp8) * number
        if chunk.has_head:
            total += self._output()
        return total

    def even(self) -> list[Passes]:
        """The average microbatch's, chunk by chunk; of a deep model most are alike."""
        job = self.job
        alike = {chunk: self.of(chunk, job.images, job.attended) for chunk in set(job.chunks())}
        return [alike[chunk] for chunk in job.chunks()]

    def _vision(self, images: float) -> Passes:
        if images not in self._seen:
            seen = _vision(replace(self.job, images=images), self._clock) if images else Passes()
            self._seen[images] = seen + Passes(vision=seen.forward + seen.backward)
        return self._seen[images]

    def _layer(self, attended: float, learns: bool, goes_back: bool, in_fp8: bool) -> Passes:
        key = attended, learns, goes_back, in_fp8
        if key not in self._layers:
            job = replace(self.job, attended=attended)
            self._layers[key] = _decoder(job, self._clock, *key[1:])
        return self._layers[key]

    def _output(self) -> Passes:
        if self._head is None:
            operators, clock = head(self.job), self._clock
            self._head = Passes(
                forward=clock.forward(operators),
                backward=clock.backward(operators, self.job.learns.tables),
            )
        return self._head


def chunk_passes(job: Job, chunk: Stage, clock: Clock) -> Passes:
    """The average microbatch's time in a chunk."""
    return PassTimes(job, clock).of(chunk, job.images, job.attended)


def _decoder(job: Job, clock: Clock, learns: bool, goes_back: bool, in_fp8: bool) -> Passes:
    """One layer of the language model."""
    layer = decoder_layer(job, in_fp8)
    passes = _layer(job, clock, layer, learns, goes_back)
    again = 0.0
    if goes_back and job.recompute == "full":
        again = passes.forward * job.recomputed
    elif goes_back and job.recompute == "attention":
        core = (one for one in layer.operators if one.kind == "attention" or one.name == "scores")
        again = clock.forward(tuple(core)) * job.recomputed
    return passes + Passes(backward=again, recomputed=again)


def _vision(job: Job, clock: Clock) -> Passes:
    tower, learns = job.tower, job.learns
    assert tower is not None
    learning, total = job.learning_tower(), Passes()
    layers = learning, tower.layers - learning
    for count, eight, does_learn in zip(layers, job.tower_in_fp8, (True, False), strict=True):
        for number, in_fp8 in ((eight, True), (count - eight, False)):
            if not number:
                continue
            layer = tower_layer(job, tower, in_fp8)
            one = _layer(job, clock, layer, does_learn, does_learn)
            if does_learn and job.recompute_vision:
                one += Passes(backward=one.forward, recomputed=one.forward)
            total += one * number
    operators = connector(job, tower)
    back = 0.0
    if learns.connector or learns.vision:
        back = clock.backward(operators, learns.connector)
    return total + Passes(forward=clock.forward(operators), backward=back)


def _layer(job: Job, clock: Clock, layer: Layer, learns: bool, goes_back: bool) -> Passes:
    """A layer with its tensor-parallel sums, and its recomputation left aside."""
    constants, tensor = clock.constants, job.share.tensor
    sums = 2 * clock.summed(layer.summed, tensor)
    if job.engine.overlap_tensor:
        sums *= 1 - constants.tensor_hidden
    ring = _context_exchange(job, clock, layer)
    launch = constants.launch * constants.software[job.engine.name]
    computed = clock.forward(layer.operators) + sums + ring
    forward = max(computed, launch)
    if not goes_back:
        return Passes(forward=forward, sums=sums, launch=forward - computed)
    # With sequence parallelism inputs are gathered once more for the gradients of weights.
    back_sums = sums * (1.5 if job.engine.sequence and learns else 1.0)
    back = clock.backward(layer.operators, learns) + back_sums + 2 * ring
    backward = max(back, 2 * launch)
    return Passes(
        forward=forward,
        backward=backward,
        sums=sums + back_sums,
        launch=forward - computed + backward - back,
    )


def _context_exchange(job: Job, clock: Clock, layer: Layer) -> float:
    """What context-parallel ranks wait for: keys and values go round behind attention."""
    context = job.share.context
    if context == 1:
        return 0.0
    decoder, rows = job.decoder, job.positions()
    near = context * job.share.tensor <= clock.gpu.domain
    if job.engine.ulysses:  # queries, keys, values there, outputs back
        sent = HALF * rows * (decoder.qkv_width() + decoder.query_width()) / job.share.tensor
        return clock.sent(sent * (context - 1) / context, near)
    sent = HALF * rows * 2 * decoder.kv_heads * decoder.head_width / job.share.tensor
    behind = sum(clock.forward((one,)) for one in layer.operators if one.kind == "attention")
    return max(0.0, clock.sent(sent * (context - 1), near) - behind)

"""How long a step takes: passes, the pipeline's schedule, data-parallel sums, the optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_mc.planner.clock import Clock
from vila_mc.planner.constants import Constants
from vila_mc.planner.held import rank_gathered, rank_learnt, rank_weights
from vila_mc.planner.job import Job
from vila_mc.planner.passes import Passes, PassTimes
from vila_mc.planner.replay import Dealt
from vila_mc.planner.schedule import Event, simulate
from vila_mc.planner.uneven import slowest_ranks
from vila_mc.planner.work import HALF
from vila_mc.topology.hardware import Gpu

SIMULATED_ROUNDS = 2
"""Microbatches that are simulated, as a multiple of the pipeline's ranks; those of a longer step
go on at the pace of the busiest rank."""
UPDATE_BYTES = 30
"""Bytes that the optimizer reads and writes for a weight: gradient, master weight, two moments, all
in fp32 (28 with what is written back), and the weight itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step's time, in seconds, and what it is made of."""

    total: float
    pipeline: float
    """From the first pass to the last, of an average data-parallel rank."""
    busy: float
    """Of it, passes of the busiest rank."""
    unevenness: float
    """By how much longer the slowest data-parallel rank takes than an average one."""
    gradients: float
    """Data-parallel sums that nothing hides."""
    optimizer: float
    rest: float
    busiest: Passes
    """Of the busiest rank, all its passes together."""
    data: float = 0.0
    """Waiting for images that are not decoded yet."""
    events: tuple[Event, ...] = ()
    """What was simulated; of the first replayed step's slowest rank where there is one."""

    def bubble(self) -> float:
        """Share of the pipeline's time in which the busiest rank waits."""
        return 1 - self.busy / self.pipeline


def step_time(job: Job, gpu: Gpu, constants: Constants, dealt: Dealt | None = None) -> StepTime:
    """Foretell one optimizer step.

    Args:
        job: what is computed, of average rows.
        gpu: kind of GPU.
        constants: fitted.
        dealt: what the rows of real steps hold, if known; else all are alike.
    """
    clock = Clock(gpu, job, constants)
    times = PassTimes(job, clock)
    passes = times.even()
    pipeline, transfer = job.share.pipeline, _transfer(job, clock)
    span, events = _span(job, [[one] * job.microbatches() for one in passes], transfer)
    unevenness = 0.0
    if dealt is not None:
        spans = [_span(job, slowest, transfer) for slowest in slowest_ranks(times, dealt)]
        unevenness = max(0.0, sum(one for one, _ in spans) / len(spans) - span)
        events = spans[0][1]
    by_rank = [sum(passes[rank::pipeline], Passes()) for rank in range(pipeline)]
    busiest = max(by_rank, key=_seconds) * job.microbatches()
    gradients = _waits_for_gradients(job, clock, passes, span)
    optimizer = _update(job, clock)
    total = span + unevenness + gradients + optimizer + constants.step
    return StepTime(
        total=total * constants.software[job.engine.name],
        pipeline=span,
        busy=_seconds(busiest),
        unevenness=unevenness,
        gradients=gradients,
        optimizer=optimizer,
        rest=constants.step,
        busiest=busiest,
        events=tuple(events),
    )


def with_loading(time: StepTime, decoding: float, workers: int) -> StepTime:
    """The same step where its images have to be decoded, too.

    Args:
        time: with all data there.
        decoding: seconds that one process takes for the images of a rank.
        workers: processes of a rank that decode ahead; without any the step does it itself.
    """
    data = max(0.0, decoding / workers - time.total) if workers else decoding
    return replace(time, total=time.total + data, data=data)


def quick_step_time(job: Job, gpu: Gpu, constants: Constants) -> float:
    """``step_time().total`` without a simulation: of stages as slow as the slowest."""
    clock = Clock(gpu, job, constants)
    passes = PassTimes(job, clock).even()
    pipeline = job.share.pipeline
    pace = max(_seconds(sum(passes[rank::pipeline], Passes())) for rank in range(pipeline))
    ramp = (pipeline - 1) * (pace / job.share.virtual + 2 * _transfer(job, clock))
    span = job.microbatches() * pace + ramp
    waits = _waits_for_gradients(job, clock, passes, span)
    total = span + waits + _update(job, clock) + constants.step
    return total * constants.software[job.engine.name]


def _seconds(passes: Passes) -> float:
    return passes.forward + passes.backward


def _span(
    job: Job, passes: Sequence[Sequence[Passes]], transfer: float
) -> tuple[float, list[Event]]:
    """From the first pass to the last, and what was simulated of it.

    Args:
        job: its schedule.
        passes: of each chunk, in flow order, those of each microbatch.
        transfer: seconds from one rank to the next.
    """
    pipeline, microbatches = job.share.pipeline, len(passes[0])
    simulated = min(microbatches, SIMULATED_ROUNDS * pipeline)
    if job.share.virtual > 1:  # only whole groups
        simulated = max(pipeline, simulated - simulated % pipeline)
    events = simulate(
        [[one.forward for one in chunk[:simulated]] for chunk in passes],
        [[one.backward for one in chunk[:simulated]] for chunk in passes],
        pipeline,
        transfer,
    )
    left = (
        sum(_seconds(one) for chunk in passes[rank::pipeline] for one in chunk[simulated:])
        for rank in range(pipeline)
    )
    return max(event.end for event in events) + max(left), events


def _transfer(job: Job, clock: Clock) -> float:
    """Seconds from one pipeline rank to the next."""
    if job.share.pipeline == 1:
        return 0.0
    shards = job.share.tensor if job.engine.sequence else 1
    near = job.share.ranks() <= clock.gpu.domain
    return clock.sent(HALF * job.positions() * job.decoder.width / shards, near)


def _update(job: Job, clock: Clock) -> float:
    learnt = max(rank_learnt(job, rank) for rank in range(job.share.pipeline))
    shared = 1 if job.engine.sharding == "none" else job.share.data * job.share.context
    return clock.moved(learnt / shared * UPDATE_BYTES)


def _waits_for_gradients(job: Job, clock: Clock, passes: Sequence[Passes], span: float) -> float:
    """Seconds of data-parallel sums that no computation hides."""
    sums, hidden = _data_sums(job, clock), clock.constants.data_hidden
    if job.engine.sharding == "weights":  # gathered anew for every pass
        behind = span * hidden if job.engine.overlap_gradients else 0.0
        return max(0.0, sums * job.microbatches() - behind)
    if not job.engine.overlap_gradients:
        return sums
    last = max(map(_seconds, passes)) * job.share.virtual
    return max(0.0, sums - hidden * last)


def _data_sums(job: Job, clock: Clock) -> float:
    """Seconds of a step's (or, where weights are shared out, a microbatch's) data-parallel sums."""
    pipeline, stride, engine = job.share.pipeline, job.share.tensor, job.engine
    members = job.share.data * job.share.context
    calls = engine.calls * job.decoder.layers / pipeline
    learnt = max(rank_learnt(job, rank) for rank in range(pipeline))
    scattered = clock.spread(engine.gradient_bytes * learnt, members, stride, calls)
    if engine.sharding == "weights":
        weights = max(rank_weights(job, rank) for rank in range(pipeline))
        return scattered + 2 * clock.spread(HALF * weights, members, stride, calls)
    shared = engine.gradient_bytes * learnt
    if engine.sharding != "none":
        shared = max(rank_gathered(job, rank) for rank in range(pipeline))
    return scattered + clock.spread(shared, members, stride, calls)

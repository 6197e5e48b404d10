"""Every layout that a recipe may take on some GPUs: pruned by memory, ranked by time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from vila_mc.config.parallel import ParallelConfig, VisionPlacement
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.planner.balance import balanced_layers
from vila_mc.planner.clock import Clock
from vila_mc.planner.constants import Constants
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.job import Job
from vila_mc.planner.known import NOTHING, Known
from vila_mc.planner.memory import peak_memory
from vila_mc.planner.passes import PassTimes
from vila_mc.planner.plan import ALLOWANCE, Plan, plan_of
from vila_mc.planner.step import quick_step_time
from vila_mc.topology.hardware import Gpu
from vila_mc.topology.layout import Layout

MICRO_BATCHES = (1, 2, 4, 8, 16)
PLACEMENTS: tuple[VisionPlacement, ...] = ("shared", "dedicated")
MOST_PIPELINE = 64
"""Pipeline ranks: the longest of the published runs. Of a model of a thousand layers longer ones
would take minutes to try, and every one of them waits more."""
SIMULATED = 40
"""Layouts whose schedule is simulated: the best by arithmetic alone."""
TOO_FULL = "does not fit the memory"
TOO_LONG = f"more than {MOST_PIPELINE} pipeline stages are not tried"


@dataclass(frozen=True, slots=True)
class Search:
    """What a search has found."""

    plans: tuple[Plan, ...]
    """From the fastest."""
    rejected: dict[str, int]
    """Layouts that cannot be, by reason."""
    nearest: str
    """If nothing fits: which layout needs least, and how much."""


def search(
    config: RunConfig, world: int, gpu: Gpu, constants: Constants, known: Known = NOTHING
) -> Search:
    """Rank the layouts of a recipe on ``world`` GPUs, and count what was rejected and why."""
    tried = _Tried(world, gpu, constants, known)
    for candidate in candidates(config, world, gpu, tried.rejected):
        job = tried.add(candidate)
        if job.share.pipeline > 1:
            layers = balanced_layers(PassTimes(job, Clock(gpu, job, constants)))
            if layers != tuple(chunk.layers for chunk in job.chunks()):
                parallel = replace(candidate.parallel, layers_per_stage=layers)
                tried.add(replace(candidate, parallel=parallel))
    best = [candidate for _, _, candidate in sorted(tried.fitting)[:SIMULATED]]
    plans = [plan_of(candidate, world, gpu, constants, known) for candidate in best]
    plans.sort(key=lambda plan: plan.time.total)
    nearest = tried.nearest
    if not plans and nearest:
        nearest = f"{nearest} needs least: {(tried.least + ALLOWANCE) / 2**30:.0f} GiB"
    return Search(tuple(plans), dict(tried.rejected), nearest)


@dataclass(slots=True)
class _Tried:
    """Layouts, by whether they fit."""

    world: int
    gpu: Gpu
    constants: Constants
    known: Known
    fitting: list[tuple[float, int, RunConfig]] = field(default_factory=list)
    """Seconds by arithmetic alone, a number that tells equals apart, the recipe."""
    rejected: Counter[str] = field(default_factory=Counter)
    least: float = float("inf")
    nearest: str = ""

    def add(self, candidate: RunConfig) -> Job:
        """Keep a layout if it fits; its job."""
        layout = Layout.of(candidate.parallel, self.world)
        job = job_of(candidate, layout, self.known)
        fullest = peak_memory(job, self.constants).total()
        if fullest < self.least:
            self.least, self.nearest = fullest, f"{layout}, micro-batch {job.micro_batch}"
        if fullest + ALLOWANCE > self.gpu.memory:
            self.rejected[TOO_FULL] += 1
        else:
            seconds = quick_step_time(job, self.gpu, self.constants)
            self.fitting.append((seconds, len(self.fitting), candidate))
        return job


def candidates(
    config: RunConfig, world: int, gpu: Gpu, rejected: Counter[str]
) -> Iterator[RunConfig]:
    """Every layout that the recipe's rules allow; the others are counted by their reason."""
    for parallel in _layouts(config, world, gpu, rejected):
        try:
            data = parallel.data(world)
            placed = replace(config, parallel=parallel)
            Layout.of(parallel, world)
        except ConfigError as error:
            rejected[_reason(error)] += 1
            continue
        for micro_batch in MICRO_BATCHES:
            microbatches, left = divmod(config.train.global_batch, micro_batch * data)
            for recompute in ("none", "full"):
                if left:
                    rejected["the global batch does not divide"] += 1
                    continue
                try:
                    train = replace(config.train, micro_batch=micro_batch, recompute=recompute)
                    candidate = replace(placed, train=train)
                except ConfigError as error:
                    rejected[_reason(error)] += 1
                    continue
                if parallel.virtual > 1 and microbatches % parallel.pipeline:
                    rejected["virtual stages need whole groups of microbatches"] += 1
                    continue
                yield candidate


def _layouts(
    config: RunConfig, world: int, gpu: Gpu, rejected: Counter[str]
) -> Iterator[ParallelConfig]:
    layers = config.model.language.layers
    for tensor in _powers(min(world, gpu.domain, 8)):
        if world % tensor:
            continue
        for pipeline in _divisors(world // tensor):
            if pipeline > layers:
                break
            if pipeline > MOST_PIPELINE:
                rejected[TOO_LONG] += 1
                continue
            for virtual in _virtual(layers, pipeline):
                for placement in PLACEMENTS if pipeline > 1 else PLACEMENTS[:1]:
                    yield replace(
                        config.parallel,
                        tensor=tensor,
                        sequence=tensor > 1,
                        pipeline=pipeline,
                        virtual=virtual,
                        vision_placement=placement,
                        layers_per_stage=None,
                    )


def _virtual(layers: int, pipeline: int) -> Sequence[int]:
    if pipeline == 1:
        return (1,)
    return [virtual for virtual in (1, 2, 4, 8) if pipeline * virtual <= layers + 1]


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _reason(error: ConfigError) -> str:
    """A refusal without its figures, so that refusals of one kind count together."""
    words = str(error).split(". ", 1)[0].split()
    return " ".join(word for word in words if not word.strip(",.").isdigit())

"""What is foretold of one layout of one recipe."""

from dataclasses import dataclass, replace

from vila_mc.config.run import RunConfig
from vila_mc.planner.constants import Constants
from vila_mc.planner.from_recipe import job_of
from vila_mc.planner.job import Job
from vila_mc.planner.known import NOTHING, Known
from vila_mc.planner.memory import Memory, rank_memory
from vila_mc.planner.saves import Saves, saves_of
from vila_mc.planner.step import StepTime, step_time, with_loading
from vila_mc.topology.flops import pairs_of, step_flops
from vila_mc.topology.hardware import Gpu
from vila_mc.topology.layout import Layout
from vila_mc.topology.micro_batch import choose_micro_batch

ALLOWANCE = 6 * 2**30
"""Bytes beside the tensors of a step: CUDA's context and libraries (about 1 GiB), NCCL's buffers
(1-2 GiB), kernels' own scratch, and what allocation leaves in pieces."""

NOTICED = 0.02
"""Share of a step that is worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One layout: how long a step takes, what each pipeline rank holds."""

    config: RunConfig
    layout: Layout
    gpu: Gpu
    job: Job
    time: StepTime
    memory: tuple[Memory, ...]
    """Of each pipeline rank."""
    saves: Saves
    known: Known

    def fits(self) -> bool:
        """Whether the fullest rank leaves the allowance free."""
        return self.fullest() + ALLOWANCE <= self.gpu.memory

    def fullest(self) -> float:
        """Bytes of tensors on the fullest rank."""
        return max(one.total() for one in self.memory)

    def tokens(self) -> float:
        """Positions of a step; without padding, where that is known."""
        replay = self.known.replay
        return self.job.rows * self.job.length * (1.0 if replay is None else replay.filled())

    def tokens_per_gpu(self) -> float:
        """Of them, those that a GPU gets through in a second."""
        return self.tokens() / (self.time.total * self.layout.world_size())

    def flops_per_gpu(self) -> float:
        """FLOP/s of a GPU that the mathematics asks for."""
        job, replay = self.job, self.known.replay
        samples = job.rows * job.length / job.attended
        pairs = samples * pairs_of(job.attended) if replay is None else replay.pairs()
        flops = step_flops(self.config).of(
            positions=self.tokens(), pairs=pairs, images=job.rows * job.images
        )
        return flops / (self.time.total * self.layout.world_size())

    def utilisation(self) -> float:
        """Share of the GPU's bf16 peak that they are (MFU)."""
        return self.flops_per_gpu() / self.gpu.peak["bf16"]

    def gpu_hours(self) -> float:
        """Of the whole phase, its checkpoints included; validation and restarts are not."""
        seconds = self.time.total * self.config.train.steps + self.saves.waiting
        return seconds * self.layout.world_size() / 3600

    def limits(self) -> str:
        """What takes most of the time beside arithmetic, in words."""
        time, busiest = self.time, self.time.busiest
        losses = {
            "the pipeline's bubble": time.pipeline - time.busy,
            "sums over tensor-parallel ranks": busiest.sums,
            "recomputation": busiest.recomputed,
            "vision": busiest.vision,
            "the data-parallel rank with most images": time.unevenness,
            "sums of gradients over data-parallel ranks": time.gradients,
            "a host that starts kernels too slowly": busiest.launch,
            "the optimizer": time.optimizer,
            "images that are not decoded in time": time.data,
        }
        name, seconds = max(losses.items(), key=lambda item: item[1])
        share = seconds / time.total
        return (
            f"arithmetic, and {name}: {share:.0%} of a step" if share >= NOTICED else "arithmetic"
        )


def plan_of(
    config: RunConfig, world: int, gpu: Gpu, constants: Constants, known: Known = NOTHING
) -> Plan:
    """Foretell one layout.

    Args:
        config: the recipe with the layout in its ``parallel`` section; without a micro-batch it
            takes the one that training chooses.
        world: GPUs in all.
        gpu: their kind.
        constants: fitted.
        known: what the rows of a step hold, and what stands around the GPUs.

    Raises:
        ConfigError: the GPUs do not divide into the layout, or the global batch into its passes.
    """
    layout = Layout.of(config.parallel, world)
    if config.train.micro_batch is None:
        rows, _ = choose_micro_batch(config, layout)
        config = replace(config, train=replace(config.train, micro_batch=rows))
    config.check_world(world)
    job = job_of(config, layout, known)
    dealt = known.dealt(layout.data, job.micro_batch)
    time = step_time(job, gpu, constants, dealt)
    images = job.rows * job.images / layout.data if dealt is None else dealt.fullest_rank()
    time = with_loading(time, images / known.decoded, config.data.workers)
    return Plan(
        config=config,
        layout=layout,
        gpu=gpu,
        job=job,
        time=time,
        memory=tuple(rank_memory(job, rank, constants) for rank in range(layout.pipeline)),
        saves=saves_of(config, job, time.total, known.disk),
        known=known,
    )

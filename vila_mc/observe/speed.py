"""How fast a step was: what it got through, and what of the GPUs' arithmetic that is."""

from typing import NamedTuple

from vila_mc.config.run import RunConfig
from vila_mc.topology.flops import step_flops
from vila_mc.topology.hardware import gpu_of_device


class Speed(NamedTuple):
    """Figures of one step; the fields are those of ``StepRecord``."""

    flops: float
    tokens_per_second_per_rank: float
    images_per_second: float
    tflops_per_rank: float
    mfu: float | None


class Speedometer:
    """Figures of a run's steps.

    Args:
        config: decides what a position and an image take.
        num_ranks: ranks of the run, each a GPU where there are any.
        device_name: what the driver calls the GPU; a peak is known of those of
            ``topology.hardware`` alone.
    """

    def __init__(self, config: RunConfig, num_ranks: int, device_name: str) -> None:
        self._flops, self._num_ranks = step_flops(config), num_ranks
        gpu = gpu_of_device(device_name)
        # FP8 is measured by the peak of bf16, as papers do: much of a step is not in FP8.
        arithmetic = "fp32" if config.train.precision == "fp32" else "bf16"
        self._peak = None if gpu is None else gpu.peak[arithmetic]  # type: ignore[index]

    def of(self, *, positions: int, pairs: int, images: int, seconds: float) -> Speed:
        """The figures of a step.

        Args:
            positions: of the global batch that hold a sample.
            pairs: of these that attend to each other.
            images: tiles, where images are cut.
            seconds: that it took.
        """
        flops = self._flops.of(positions=positions, pairs=pairs, images=images)
        per_rank = flops / seconds / self._num_ranks
        return Speed(
            flops=flops,
            tokens_per_second_per_rank=round(positions / seconds / self._num_ranks, 2),
            images_per_second=round(images / seconds, 3),
            tflops_per_rank=round(per_rank / 1e12, 6),
            mfu=None if self._peak is None else round(per_rank / self._peak, 5),
        )

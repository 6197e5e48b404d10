"""The first steps of a run on GPUs beside what the planner foretells of them, once."""

import statistics
from collections.abc import Iterator

from vila_mc.config.run import RunConfig
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.topology.hardware import gpu_of_device

WARM_UP = 5
"""Steps of a process that are not counted: kernels are chosen, memory is claimed."""
COUNTED = 10
"""Steps behind them, which are."""


class Foretold:
    """Compares, once, and says what is off.

    Args:
        config: the whole configuration. Nothing is foretold of fp32.
        num_ranks: ranks of the run, each a GPU where there are any.
        device_name: what the driver calls the GPU; nothing is foretold of kinds that are not in
            ``topology.hardware``.
    """

    def __init__(self, config: RunConfig, num_ranks: int, device_name: str) -> None:
        self._config, self._num_ranks = config, num_ranks
        is_known = config.train.precision != "fp32"
        self._gpu = gpu_of_device(device_name) if is_known else None
        self._steps = 0
        self._seconds: list[float] = []
        self._images = 0
        self._gib = 0.0

    def after_step(self, *, seconds: float, images: int, gib: float) -> Iterator[str]:
        """Count a step; a line for each figure that is off, behind the last step that counts.

        Args:
            seconds: that it took, waiting for its data included.
            images: of its global batch; tiles, where images are cut.
            gib: that tensors took at its peak, on the fullest rank.
        """
        if self._gpu is None or self._steps == WARM_UP + COUNTED:
            return
        self._steps += 1
        if self._steps <= WARM_UP:
            return
        self._seconds.append(seconds)
        self._images += images
        self._gib = max(self._gib, gib)
        if self._steps == WARM_UP + COUNTED:
            images_of_a_row = self._images / (COUNTED * self._config.train.global_batch)
            plan = plan_of(
                self._config, self._num_ranks, self._gpu, FITTED, Known(images=images_of_a_row)
            )
            yield from differences(plan, statistics.median(self._seconds), self._gib)


def differences(plan: Plan, seconds: float, gib: float) -> Iterator[str]:
    """What is off the plan by more than the planner's band: a line each.

    Args:
        plan: of the run.
        seconds: of a step, measured.
        gib: of tensors at the peak of the fullest rank, measured.
    """
    low, high = FITTED.band
    total, held = plan.time.total, plan.fullest() / 2**30
    if not low * total <= seconds <= high * total:
        look = (
            "Look for data that come late (data.workers), slow links between the GPUs, or other "
            "work on them"
            if seconds > total
            else "The planner counts something that is not done"
        )
        yield (
            f"a step takes {seconds:.2f} s, but {low * total:.2f} to {high * total:.2f} s were "
            f"foretold for {plan.gpu.title}. {look} (docs/planner.md)."
        )
    if not low * gib <= held <= high * gib:
        yield (
            f"tensors take {gib:.1f} GiB at the peak of the fullest rank, but {held / high:.1f} to "
            f"{held / low:.1f} GiB were foretold. See which they are with a rehearsal of the "
            "recipe (docs/rehearsal.md)."
        )

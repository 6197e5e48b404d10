"""Plans beside each other: the phases of a recipe, and what other options would come to."""

from collections.abc import Sequence

from vila_mc.planner.plan import Plan
from vila_mc.planner.report import GIB, legend, prose, short_layout
from vila_mc.table import aligned


def phase_lines(plans: Sequence[Plan]) -> list[str]:
    """The layout of every phase on the same GPUs, and all hours together."""
    world = plans[0].layout.world_size()
    rows = [("phase", "layout", "step", "steps", "GPU-hours", "days")]
    rows += [
        (
            plan.config.train.phase,
            short_layout(plan),
            f"{plan.time.total:.2f} s",
            f"{plan.config.train.steps:,}{'' if plan.known.are_steps_known else ' (assumed)'}",
            f"{plan.gpu_hours():,.0f}",
            f"{plan.gpu_hours() / world / 24:.1f}",
        )
        for plan in plans
    ]
    total = sum(plan.gpu_hours() for plan in plans)
    rows.append(("all", "", "", "", f"{total:,.0f}", f"{total / world / 24:.1f}"))
    return [*aligned(rows), *legend(plans)]


def what_if_lines(best: Plan, others: Sequence[tuple[str, Plan | None]]) -> list[str]:
    """The best layout as asked, and under other options.

    Args:
        best: as asked.
        others: options, and their best plan if a layout fits.
    """
    rows = [("what if", "layout", "GPU", "step", "tokens/s/GPU", "GiB", "GPU-hours")]
    cases = [("as asked", best), *((f"({n})", one) for n, (_, one) in enumerate(others, 1))]
    for name, plan in cases:
        if plan is None:
            rows.append((name, "no layout fits", "", "", "", "", ""))
            continue
        rows.append(
            (
                name,
                short_layout(plan),
                plan.gpu.name,
                f"{plan.time.total:.2f} s",
                f"{plan.tokens_per_gpu():,.0f}",
                f"{plan.fullest() / GIB:.1f}",
                f"{plan.gpu_hours():,.0f}",
            )
        )
    said = [line for n, (options, _) in enumerate(others, 1) for line in prose(f"({n}) {options}")]
    return [*aligned(rows), *said, *legend([plan for _, plan in cases if plan is not None])]

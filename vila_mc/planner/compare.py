"""Plans beside each other: the phases of a recipe, and what other options would come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vila_mc.planner.known import Known
from vila_mc.planner.plan import Plan
from vila_mc.planner.report import GIB, legend, plan_values, prose, short_layout
from vila_mc.table import aligned

_NONE_FITS = "no layout fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question, and the best layout that answers it."""

    name: str
    """What sets it apart: the phase, or the options."""
    gpus: int
    gpu: str
    """Its key in ``topology.hardware.GPUS``."""
    price: float | None
    """Of one GPU for an hour."""
    steps: int
    known: Known
    plan: Plan | None
    """None if no layout fits."""

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "gpus": self.gpus,
            "gpu": self.gpu,
            "price": self.price,
            "steps": self.steps,
            "are_steps_known": self.known.are_steps_known,
            "layout": None if self.plan is None else plan_values(self.plan, self.price),
        }

    def cost(self) -> float | None:
        """Of all hours; None without a price, or if no layout fits."""
        if self.plan is None or self.price is None:
            return None
        return self.plan.gpu_hours() * self.price


def phase_lines(phases: Sequence[Case]) -> list[str]:
    """The layout of every phase on the same GPUs, and all hours together if each has one."""
    world = phases[0].gpus
    rows = [("phase", "layout", "step", "steps", "GPU-hours", "days", *_heading(phases))]
    for phase in phases:
        steps = f"{phase.steps:,}{'' if phase.known.are_steps_known else ' (assumed)'}"
        told: tuple[str, ...] = (_NONE_FITS, "", steps, "", "")
        if (plan := phase.plan) is not None:
            hours = plan.gpu_hours()
            step = f"{plan.time.total:.2f} s"
            told = short_layout(plan), step, steps, f"{hours:,.0f}", f"{hours / world / 24:.1f}"
        rows.append((phase.name, *told, *_cost(phase, phases)))
    plans = _plans(phases)
    if len(plans) == len(phases):
        total = sum(plan.gpu_hours() for plan in plans)
        costs = [cost for phase in phases if (cost := phase.cost()) is not None]
        all_costs = (f"{sum(costs):,.0f}",) if costs else ()
        rows.append(("all", "", "", "", f"{total:,.0f}", f"{total / world / 24:.1f}", *all_costs))
    return [*aligned(rows), *legend(plans)]


def what_if_lines(asked: Case, others: Sequence[Case]) -> list[str]:
    """The best layout as asked, and under other options.

    Args:
        asked: the question itself.
        others: the same with further options, which are its ``name``.
    """
    cases = (asked, *others)
    heading = ("what if", "layout", "GPU", "step", "tokens/s/GPU", "GiB", "GPU-hours")
    rows = [(*heading, *_heading(cases))]
    for number, case in enumerate(cases):
        told: tuple[str, ...] = (_NONE_FITS, case.gpu, "", "", "", "")
        if (plan := case.plan) is not None:
            told = (
                short_layout(plan),
                case.gpu,
                f"{plan.time.total:.2f} s",
                f"{plan.tokens_per_gpu():,.0f}",
                f"{plan.fullest() / GIB:.1f}",
                f"{plan.gpu_hours():,.0f}",
            )
        rows.append((f"({number})" if number else "as asked", *told, *_cost(case, cases)))
    said = [line for n, one in enumerate(others, 1) for line in prose(f"({n}) {one.name}")]
    return [*aligned(rows), *said, *legend(_plans(cases))]


def _plans(cases: Sequence[Case]) -> list[Plan]:
    return [case.plan for case in cases if case.plan is not None]


def _heading(cases: Sequence[Case]) -> tuple[str, ...]:
    return ("cost",) if any(case.price is not None for case in cases) else ()


def _cost(case: Case, beside: Sequence[Case]) -> tuple[str, ...]:
    """The cell of its cost, where the table has such a column."""
    cost = case.cost()
    return ("" if cost is None else f"{cost:,.0f}",) if _heading(beside) else ()

"""``vila-mc plan``: how long a recipe takes and what it holds, before a GPU is rented."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vila_mc.commands.command import require_page
from vila_mc.config.load import add_config_options, load_run, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.files import write_whole
from vila_mc.planner.constants import FITTED
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.page import page
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.planner.rehearsed import PlannedRehearsal, planned_like, read_rehearsal
from vila_mc.planner.report import plan_lines, plan_values, recipe_of, search_lines, table
from vila_mc.planner.search import Search, search
from vila_mc.planner.trace import trace_of
from vila_mc.topology.hardware import GPUS

MOST_GPUS = 16_384
"""Beyond it the fitted constants say nothing."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Search, print, write. Raises VilaError."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed, config = _read(given, prog)
    if parsed.html is not None:
        require_page(parsed.html)
    rehearsed = _rehearsed(parsed, config)
    phases = [load_run([file]) for file in parsed.phase]
    explained = with_layout(config, parsed.explain) if parsed.explain else None
    others = [(one, *_read([*given, *shlex.split(one)], prog)) for one in parsed.what_if]
    found = _search(parsed, config)
    for line in [
        _title(parsed, config),
        "",
        *search_lines(found, FITTED, parsed.price, parsed.top),
    ]:
        say(line)
    if not found.plans:
        return 1
    say(f"\nThe recipe's own layout: {_own(parsed, config)}")
    if explained is not None:
        _explain(parsed, explained)
    if phases:
        _phases(parsed, phases, found.plans[0])
    if others:
        _what_if(others, found.plans[0])
    _write(parsed, config, found, rehearsed)
    return 0


def _read(given: Sequence[str], prog: str | None) -> tuple[argparse.Namespace, RunConfig]:
    """What is asked, and the recipe. Raises ConfigError."""
    parsed = _parser(prog).parse_args(given)
    if parsed.gpu not in GPUS:
        raise ConfigError(f"--gpu is {parsed.gpu}; it must be one of {', '.join(GPUS)}.")
    for name in ("gpus", "top"):
        if not 1 <= getattr(parsed, name) <= MOST_GPUS:
            raise ConfigError(
                f"--{name} is {getattr(parsed, name)}; it must be from 1 to {MOST_GPUS}."
            )
    for name in ("images", "price"):
        value = getattr(parsed, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"--{name} is {value}; it must be 0 or greater.")
    config = load_run_from_args(parsed)
    _require_possible(parsed, config)
    return parsed, config


def _parser(prog: str | None) -> ErrorRaisingParser:
    parser = ErrorRaisingParser(
        prog=prog,
        description="Foretell how long a recipe takes on a cluster, what every stage holds, and "
        "which layouts are best. It needs no GPU.",
        usage="%(prog)s --config FILE --gpus N --gpu KIND [--section.option VALUE ...]",
    )
    planning = parser.add_argument_group("planning")
    planning.add_argument("--gpus", type=int, required=True, help="GPUs in all")
    planning.add_argument(
        "--gpu", default="h100-80g", metavar="KIND", help=f"one of {', '.join(GPUS)} (%(default)s)"
    )
    planning.add_argument(
        "--images",
        type=float,
        help="squares of a row on average, each an image or a tile (default: as many as have room)",
    )
    planning.add_argument("--price", type=float, help="of one GPU for an hour, for the cost")
    planning.add_argument("--top", type=int, default=5, help="layouts to print (%(default)s)")
    planning.add_argument(
        "--explain",
        metavar="LAYOUT",
        help="one layout in detail, such as tensor=2,pipeline=4,micro_batch=1",
    )
    planning.add_argument(
        "--phase",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the recipe of a further phase, on the same GPUs; may be given several times",
    )
    planning.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="OPTIONS",
        help='other options, such as "--gpus 8" or "--gpu a100-80g", beside each other',
    )
    planning.add_argument("--json", type=Path, metavar="FILE", help="write the layouts as values")
    planning.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts")
    planning.add_argument(
        "--rehearsal",
        type=Path,
        metavar="FILE",
        help="what train --rehearse --json printed for this recipe, to stand on the page",
    )
    planning.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the first layout's timeline for Perfetto"
    )
    planning.add_argument(
        "--write", type=Path, metavar="FILE", help="write the first layout as a recipe"
    )
    add_config_options(parser)
    return parser


def _require_possible(parsed: argparse.Namespace, config: RunConfig) -> None:
    """Refuse what the GPU does not compute, and more images than a row holds."""
    recipe, gpu = config.train.fp8.recipe, GPUS[parsed.gpu]
    if recipe != "none" and "fp8" not in gpu.peak:
        raise ConfigError(
            f"train.fp8.recipe is {recipe}, but an {gpu.title} computes no FP8. Choose another "
            "--gpu, or set train.fp8.recipe to none."
        )
    if recipe == "mxfp8" and "fp4" not in gpu.peak:
        raise ConfigError(
            f"train.fp8.recipe is mxfp8, which needs Blackwell, and --gpu is {parsed.gpu}. Choose "
            "another recipe or --gpu."
        )
    length = config.data.sequence_length
    most = length // config.model.tile_positions()
    if parsed.images is not None and parsed.images > most:
        raise ConfigError(
            f"--images is {parsed.images:g}, but a row of {length:,} positions has room for "
            f"{most}. Give at most that."
        )


def _rehearsed(parsed: argparse.Namespace, config: RunConfig) -> PlannedRehearsal | None:
    """The rehearsal that is to stand on the page. Raises ConfigError."""
    if parsed.rehearsal is None:
        return None
    if parsed.html is None:
        raise ConfigError("--rehearsal is for the page alone. Add --html FILE.")
    rehearsed = read_rehearsal(parsed.rehearsal)
    return rehearsed, planned_like(rehearsed, config, GPUS[parsed.gpu], FITTED)


def _search(parsed: argparse.Namespace, config: RunConfig) -> Search:
    return search(config, parsed.gpus, GPUS[parsed.gpu], FITTED, parsed.images)


def _title(parsed: argparse.Namespace, config: RunConfig) -> str:
    train = config.train
    return (
        f"{train.phase} on {parsed.gpus:,} x {GPUS[parsed.gpu].title}: {train.steps:,} steps of "
        f"{train.global_batch:,} rows of {config.data.sequence_length:,} positions"
    )


def _own(parsed: argparse.Namespace, config: RunConfig) -> str:
    """What the recipe's own layout would take, in a line."""
    try:
        plan = plan_of(config, parsed.gpus, GPUS[parsed.gpu], FITTED, parsed.images)
    except ConfigError as error:
        return f"cannot be. {error}"
    held = f"{plan.fullest() / 2**30:.1f} GiB, which {'fits' if plan.fits() else 'does not fit'}"
    return f"{plan.layout}: {plan.time.total:.2f} s a step, {held}."


def _explain(parsed: argparse.Namespace, config: RunConfig) -> None:
    plan = plan_of(config, parsed.gpus, GPUS[parsed.gpu], FITTED, parsed.images)
    fits = "fits" if plan.fits() else "does not fit"
    say(f"\n{plan.layout}, micro-batch {plan.job.micro_batch}: {fits}")
    for line in plan_lines(plan):
        say(line)


def _phases(parsed: argparse.Namespace, phases: Sequence[RunConfig], first: Plan) -> None:
    """The best layout of every phase, and all of them together."""
    plans = [(first.config.train.phase, first)]
    for other in phases:
        found = search(other, parsed.gpus, GPUS[parsed.gpu], FITTED, parsed.images)
        if not found.plans:
            raise ConfigError(f"no layout of {other.train.phase} fits: {found.nearest}.")
        plans.append((other.train.phase, found.plans[0]))
    rows = [("phase", "layout", "step", "steps", "GPU-hours", "days")]
    for name, plan in plans:
        hours = plan.gpu_hours()
        rows.append(
            (
                name,
                str(plan.layout),
                f"{plan.time.total:.2f} s",
                f"{plan.config.train.steps:,}",
                f"{hours:,.0f}",
                f"{hours / parsed.gpus / 24:.1f}",
            )
        )
    total = sum(plan.gpu_hours() for _, plan in plans)
    rows.append(("all", "", "", "", f"{total:,.0f}", f"{total / parsed.gpus / 24:.1f}"))
    say("")
    for line in table(rows):
        say(line)


def _what_if(others: Sequence[tuple[str, argparse.Namespace, RunConfig]], best: Plan) -> None:
    """The best layout under other options, beside the first."""
    rows = [("what if", "layout", "step", "tokens/s/GPU", "fullest rank", "GPU-hours")]
    cases: list[tuple[str, Plan | None]] = [("as asked", best)]
    for options, other, config in others:
        found = _search(other, config)
        cases.append((options, found.plans[0] if found.plans else None))
    for name, plan in cases:
        if plan is None:
            rows.append((name, "no layout fits", "", "", "", ""))
            continue
        rows.append(
            (
                name,
                f"{plan.layout} on {plan.gpu.title}",
                f"{plan.time.total:.2f} s",
                f"{plan.tokens_per_gpu():,.0f}",
                f"{plan.fullest() / 2**30:.1f} GiB",
                f"{plan.gpu_hours():,.0f}",
            )
        )
    say("")
    for line in table(rows):
        say(line)


def _write(
    parsed: argparse.Namespace, config: RunConfig, found: Search, beside: PlannedRehearsal | None
) -> None:
    best = found.plans[0]
    if parsed.json is not None:
        _written(
            parsed.json, json.dumps([plan_values(one) for one in found.plans], indent=2) + "\n"
        )
    if parsed.html is not None:
        told = page(_title(parsed, config), found, parsed.top, parsed.price, beside)
        _written(parsed.html, told)
    if parsed.trace is not None:
        _written(parsed.trace, json.dumps(trace_of(best)))
    if parsed.write is not None:
        _written(parsed.write, recipe_of(best))


def _written(file: Path, text: str) -> None:
    write_whole(file, text)
    say(f"wrote {file}")


if __name__ == "__main__":
    run_cli(main)

"""``vila-mc plan``: how long a recipe takes and what it holds, before a GPU is rented."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.commands.command import require_no_input, require_page
from vila_mc.commands.gpu_kind import DEFAULT, HELP, gpu_named
from vila_mc.commands.plan_data import add_data_options, known_of
from vila_mc.config.load import add_config_options, dotted_options, load_run, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, run_cli, say
from vila_mc.files import write_whole
from vila_mc.planner.compare import Case, phase_lines, what_if_lines
from vila_mc.planner.constants import FITTED
from vila_mc.planner.known import Known
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.page import page
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.planner.rehearsed import PlannedRehearsal, planned_like, read_rehearsal
from vila_mc.planner.report import plan_lines, plan_values, prose, recipe_of, search_lines
from vila_mc.planner.search import Search, search
from vila_mc.planner.trace import trace_of

MOST_GPUS = 16_384
"""Beyond it the fitted constants say nothing."""
_OUTPUTS = "json", "html", "trace", "write"
"""Options that name a file to write."""
_OF_THE_ANSWER = "top", "explain", "phase", "what_if", "rehearsal", *_OUTPUTS
"""Options that another question cannot have for itself."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question: options, recipe, and what is known of its rows."""

    options: argparse.Namespace
    config: RunConfig
    known: Known
    rows: str
    """A line about where rows come from."""

    def search(self) -> Search:
        """Every layout."""
        gpus, gpu = self.options.gpus, gpu_named(self.options.gpu)
        return search(self.config, gpus, gpu, FITTED, self.known)

    def case(self, name: str, found: Search) -> Case:
        """It and its best layout, to stand beside others."""
        options = self.options
        return Case(
            name=name,
            gpus=options.gpus,
            gpu=options.gpu,
            price=options.price,
            steps=self.config.train.steps,
            known=self.known,
            plan=next(iter(found.plans), None),
        )

    def plan(self, config: RunConfig) -> Plan:
        """One layout. Raises ConfigError."""
        return plan_of(config, self.options.gpus, gpu_named(self.options.gpu), FITTED, self.known)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is said of a question."""

    asked: _Asked
    found: Search
    explained: Plan | None
    phases: tuple[Case, ...]
    """The recipe's own first; none if no other is asked about."""
    others: tuple[Case, ...]
    """With further options."""

    def values(self) -> dict[str, Any]:
        """As plain values: docs/planner.md describes them."""
        options, found = self.asked.options, self.found
        return {
            "question": {
                "title": _title(self.asked),
                "gpus": options.gpus,
                "gpu": options.gpu,
                "price": options.price,
                "steps": self.asked.config.train.steps,
                "are_steps_known": self.asked.known.are_steps_known,
                "rows": self.asked.rows,
            },
            "layouts": [plan_values(one, options.price) for one in found.plans],
            "rejected": found.rejected,
            "nearest": None if found.plans else found.nearest,
            "explained": None
            if self.explained is None
            else plan_values(self.explained, options.price),
            "phases": [one.values() for one in self.phases],
            "what_ifs": [one.values() for one in self.others],
        }


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Search, print, write. Raises VilaError."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = _read(given, prog)
    options = asked.options
    others = [(one, _other(given, one, prog)) for one in options.what_if]
    _require_outputs(options, [other.options for _, other in others])
    rehearsed = _rehearsed(asked)
    on_the_line = dotted_options(options)
    further = [_of(options, load_run([file], on_the_line)) for file in options.phase]
    explained = None
    if options.explain is not None:
        explained = asked.plan(with_layout(asked.config, options.explain))
    found = asked.search()
    _say(prose(_title(asked)), prose(asked.rows), [""])
    _say(search_lines(found, FITTED, options.price, options.top))
    _say([""], prose(f"The recipe's own layout: {_own(asked)}"))
    if explained is not None:
        fits = "fits" if explained.fits() else "does not fit"
        title = f"{explained.layout}, micro-batch {explained.job.micro_batch}: {fits}"
        _say(["", title], plan_lines(explained))
    phases = [one.case(one.config.train.phase, one.search()) for one in further]
    if phases:
        phases.insert(0, asked.case(asked.config.train.phase, found))
        _say([""], phase_lines(phases))
        if on_the_line:
            _say(prose(f"Given for every phase: {', '.join(on_the_line)}."))
    whats = [other.case(one, other.search()) for one, other in others]
    if whats:
        _say([""], what_if_lines(asked.case("as asked", found), whats))
        if phases:
            _say(prose(f"The what-ifs are of {asked.config.train.phase} alone, not of all phases."))
    _write(_Answer(asked, found, explained, tuple(phases), tuple(whats)), rehearsed)
    return 0 if found.plans and all(phase.plan for phase in phases) else 1


def _say(*blocks: Sequence[str]) -> None:
    for block in blocks:
        for line in block:
            say(line)


def _read(given: Sequence[str], prog: str | None) -> _Asked:
    """What is asked. Raises VilaError."""
    parsed = _parser(prog).parse_args(list(_joined(given)))
    gpu_named(parsed.gpu)
    for name in ("gpus", "top"):
        if not 1 <= getattr(parsed, name) <= MOST_GPUS:
            raise ConfigError(
                f"--{name} is {getattr(parsed, name)}; it must be from 1 to {MOST_GPUS}."
            )
    if parsed.price is not None and not 0 <= parsed.price < float("inf"):
        raise ConfigError(f"--price is {parsed.price}; it must be 0 or greater.")
    return _of(parsed, load_run_from_args(parsed))


def _joined(given: Sequence[str]) -> Iterator[str]:
    """The words with --what-if and its value as one: argparse takes a value that begins with -- and
    holds no space for an option of its own."""
    words = iter(given)
    for word in words:
        value = next(words, None) if word == "--what-if" else None
        yield word if value is None else f"{word}={value}"


def _other(given: Sequence[str], options: str, prog: str | None) -> _Asked:
    """The question with further options. Raises VilaError."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ConfigError(
            f"--what-if is {options}, whose quotes are not closed: {error}."
        ) from None
    names = {f"--{name.replace('_', '-')}" for name in _OF_THE_ANSWER}
    if misplaced := [word for word in words if word.partition("=")[0] in names]:
        raise ConfigError(
            f"{misplaced[0]} in --what-if is about what is printed or written, of which there is "
            "one. Give it beside --what-if."
        )
    return _read([*given, *words], prog)


def _of(parsed: argparse.Namespace, config: RunConfig) -> _Asked:
    """A recipe under options. Raises VilaError."""
    _require_possible(parsed, config)
    config, known, line = known_of(parsed, config)
    return _Asked(parsed, config, known, line)


def _parser(prog: str | None) -> ErrorRaisingParser:
    parser = ErrorRaisingParser(
        prog=prog,
        description="Foretell how long a recipe takes on a cluster, what every stage holds, and "
        "which layouts are best. It needs no GPU.",
        usage="%(prog)s --config FILE --gpus N --gpu KIND [--section.option VALUE ...]",
    )
    planning = parser.add_argument_group("planning")
    planning.add_argument("--gpus", type=int, required=True, help="GPUs in all")
    planning.add_argument("--gpu", default=DEFAULT, metavar="KIND", help=HELP)
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
    planning.add_argument("--json", type=Path, metavar="FILE", help="write the answer as values")
    planning.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts")
    planning.add_argument(
        "--rehearsal",
        type=Path,
        metavar="FILE",
        help="what train --rehearse --rehearsal FILE wrote for this recipe, to stand on the page",
    )
    planning.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the first layout's timeline for Perfetto"
    )
    planning.add_argument(
        "--write", type=Path, metavar="FILE", help="write the first layout as a recipe"
    )
    add_data_options(parser)
    add_config_options(parser)
    return parser


def _require_possible(parsed: argparse.Namespace, config: RunConfig) -> None:
    """Refuse what the GPU does not compute, and what nothing is known of."""
    if config.train.precision == "fp32":
        raise ConfigError(
            "train.precision is fp32; the planner foretells bf16, fp16 and FP8. Plan with "
            "--train.precision bf16, or see what fp32 holds with train --rehearse."
        )
    recipe, gpu = config.train.fp8.recipe, gpu_named(parsed.gpu)
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


def _require_outputs(options: argparse.Namespace, others: Sequence[argparse.Namespace]) -> None:
    """Refuse to write over what is read, or over another output. Raises VilaError."""
    inputs = [file for one in (options, *others) for file in one.config]
    inputs += [*options.phase, *([] if options.rehearsal is None else [options.rehearsal])]
    taken: dict[Path, str] = {}
    for name in _OUTPUTS:
        file, flag = getattr(options, name), f"--{name}"
        if file is None:
            continue
        require_no_input(file, inputs, flag)
        other = taken.setdefault(file.resolve(), flag)
        if other != flag:
            raise ConfigError(f"{other} and {flag} are both {file}. Give each a file of its own.")
    if options.html is not None:
        require_page(options.html, "--html")


def _rehearsed(asked: _Asked) -> PlannedRehearsal | None:
    """The rehearsal that is to stand on the page. Raises ConfigError."""
    options = asked.options
    if options.rehearsal is None:
        return None
    if options.html is None:
        raise ConfigError("--rehearsal is for the page alone. Add --html FILE.")
    rehearsed = read_rehearsal(options.rehearsal)
    return rehearsed, planned_like(rehearsed, asked.config, gpu_named(options.gpu), FITTED)


def _title(asked: _Asked) -> str:
    train, gpu = asked.config.train, gpu_named(asked.options.gpu)
    return (
        f"{train.phase} on {asked.options.gpus:,} x {gpu.title}: {train.steps:,} steps of "
        f"{train.global_batch:,} rows of {asked.config.data.sequence_length:,} positions"
    )


def _own(asked: _Asked) -> str:
    """What the recipe's own layout would take, in a line."""
    try:
        plan = asked.plan(asked.config)
    except ConfigError as error:
        return f"cannot be. {error}"
    rows = f"micro-batch {plan.job.micro_batch}"
    if asked.config.train.micro_batch is None:
        rows += ", which training chooses"
    held = f"{plan.fullest() / 2**30:.1f} GiB, which {'fits' if plan.fits() else 'does not fit'}"
    return f"{plan.layout}, {rows}: {plan.time.total:.2f} s a step, {held}."


def _write(answer: _Answer, beside: PlannedRehearsal | None) -> None:
    asked, found, parsed = answer.asked, answer.found, answer.asked.options
    if parsed.json is not None:
        _written(parsed.json, json.dumps(answer.values(), indent=2) + "\n")
    if not found.plans:
        for file in (parsed.html, parsed.trace, parsed.write):
            if file is not None:
                say(f"{file} is not written: no layout fits.")
        return
    best = found.plans[0]
    if parsed.html is not None:
        told = page(_title(asked), found, parsed.top, parsed.price, asked.rows, beside)
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

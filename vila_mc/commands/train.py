"""``vila-mc train``: one phase of training, on one machine or several.

On one machine: ``vila-mc train --config RECIPE.yaml --ranks 4``. On a cluster, start it once per
machine with --nodes and --rendezvous, or start it under torchrun.
"""

import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vila_mc.commands.list_presets import preset_lines
from vila_mc.commands.rehearsing import add_rehearsal_options, refuse_unrehearsed, rehearse_run
from vila_mc.config.load import add_config_options, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, ExitCode, SetupError, run_cli, say

if TYPE_CHECKING:
    from vila_mc.train.stop_signals import StopSignals

ALONE = "localhost:0"
"""The rendezvous of one machine, which needs none."""
_RANK_COMMAND = ("-P", "-m", "vila_mc.commands.train")
"""What the interpreter of each rank runs; -P keeps the working directory out of its imports."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Start the ranks of this machine, or be one of them. Raises VilaError."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed = arguments_parser(prog).parse_args(given)
    if parsed.presets:
        for line in preset_lines():
            say(line)
        return 0
    if parsed.status is not None:
        return _show_standing(parsed.status, parsed.json)
    refuse_unrehearsed(parsed)
    config = load_run_from_args(parsed)
    if parsed.rehearse:
        return rehearse_run(config, parsed)

    if "RANK" in os.environ:
        if parsed.check:
            raise ConfigError("--check looks once for all ranks. Start it without a launcher.")
        from vila_mc.train.rank import train_rank

        return train_rank(config)

    return _launch(config, parsed, given)


def _show_standing(output: Path, as_json: bool) -> int:
    """Say where a run stands. Raises DataError."""
    from vila_mc.train.standing import lines_of, standing_of

    standing = standing_of(output)
    say(json.dumps(asdict(standing), indent=2) if as_json else "\n".join(lines_of(standing)))
    return ExitCode.OK


def _launch(config: RunConfig, parsed: Namespace, given: Sequence[str]) -> int:
    """Start the ranks of this machine, and again after a fault if that is asked for."""
    from vila_mc.train.faults import DEADLINE, deadline_of
    from vila_mc.train.stop_signals import StoppedError, StopSignals

    _check_launch(parsed)
    deadline = deadline_of(config.train, os.environ, time.time())
    if deadline < math.inf:
        os.environ[DEADLINE] = str(deadline)
    with StopSignals() as stop:
        try:
            return _start_ranks(config, parsed, given, stop, deadline)
        except StoppedError:
            say("stopped while no rank ran; nothing was lost", to_stderr=True)
            return stop.code or ExitCode.INTERRUPTED


def _start_ranks(
    config: RunConfig, parsed: Namespace, given: Sequence[str], stop: "StopSignals", deadline: float
) -> int:
    with stop.waiting():
        from vila_mc.train.launch import launch
        from vila_mc.train.preflight import check_before_launch
        from vila_mc.train.rendezvous import Endpoint, meet
        from vila_mc.train.restarts import Outcome, start_until_done

        at = Endpoint.parse(parsed.rendezvous)
        ranks, nodes = parsed.ranks or _gpus(), parsed.nodes
        check_before_launch(config, ranks * nodes)
    if parsed.check:
        say(f"recipe, datasets and checkpoint are fit for {ranks * nodes} ranks")
        return ExitCode.OK
    if deadline < math.inf:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(deadline))
        say(f"stops and saves at {when}, before its time limit")

    def start(restart: int, look: Callable[[], None]) -> Outcome:
        meeting = None
        if nodes > 1:
            with stop.waiting():
                meeting = meet(at, config, machines=nodes, ranks=ranks, look=look)
        command = [*_RANK_COMMAND, *given]
        return launch(command, ranks=ranks, stop=stop, meeting=meeting, restart=restart)

    most, output = parsed.max_restarts, config.train.output
    return start_until_done(start, output, most=most, stop=stop, deadline=deadline)


def arguments_parser(prog: str | None = None) -> ErrorRaisingParser:
    """How ranks are launched, and every option of a run."""
    parser = ErrorRaisingParser(
        prog=prog,
        description="Train one phase of a VILA.",
        usage="%(prog)s --config FILE [--ranks N] [--section.option VALUE ...]",
    )
    launching = parser.add_argument_group("launching")
    launching.add_argument("--ranks", type=int, help="ranks on this machine (default: its GPUs)")
    launching.add_argument("--nodes", type=int, default=1, help="machines in all (default: 1)")
    launching.add_argument(
        "--rendezvous",
        default=ALONE,
        metavar="HOST:PORT",
        help="where machines meet, the same on all of them (default: this machine alone)",
    )
    launching.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="after a rank died or hung, start again from the newest checkpoint, at most so often "
        "(default: 0)",
    )
    launching.add_argument(
        "--presets", action="store_true", help="list what --config preset:NAME knows, and end"
    )
    launching.add_argument(
        "--status",
        type=Path,
        metavar="DIR",
        help="say where the run in this train.output stands (--json for programs), and end",
    )
    launching.add_argument(
        "--check",
        action="store_true",
        help="refuse what can be seen before ranks start (data, checkpoint, layout), and end",
    )
    add_rehearsal_options(parser)
    add_config_options(parser)
    return parser


def _check_launch(parsed: Namespace) -> None:
    ranks, nodes = parsed.ranks, parsed.nodes
    if (ranks is not None and ranks < 1) or nodes < 1:
        raise ConfigError(f"--ranks is {ranks} and --nodes is {nodes}; each must be at least 1.")
    if parsed.max_restarts < 0:
        raise ConfigError(f"--max-restarts is {parsed.max_restarts}; it must be 0 or more.")
    if nodes > 1 and parsed.rendezvous == ALONE:
        raise ConfigError(
            f"--nodes is {nodes}, but without --rendezvous the machines cannot meet. Give the same "
            "HOST:PORT on all of them, with one of them as HOST and a free port of it."
        )


def _gpus() -> int:
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        raise SetupError("this machine has no GPU. Say with --ranks how many CPU ranks to start.")
    return gpus


if __name__ == "__main__":
    run_cli(main)

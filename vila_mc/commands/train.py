"""``vila-mc train``: one phase of training, on one machine or several.

On one machine: ``vila-mc train --config RECIPE.yaml --ranks 4``. On a cluster, start it once per
machine with --nodes and --rendezvous, or start it under torchrun.
"""

import os
import sys
from collections.abc import Sequence

from vila_mc.commands.list_presets import preset_lines
from vila_mc.commands.rehearsing import add_rehearsal_options, refuse_unrehearsed, rehearse_run
from vila_mc.config.load import add_config_options, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser
from vila_mc.errors import ConfigError, SetupError, run_cli, say

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
    refuse_unrehearsed(parsed)
    config = load_run_from_args(parsed)
    if parsed.rehearse:
        return rehearse_run(config, parsed)

    if "RANK" in os.environ:
        if parsed.check:
            raise ConfigError("--check looks once for all ranks. Start it without a launcher.")
        from vila_mc.train.rank import train_rank

        return train_rank(config)

    from vila_mc.train.launch import launch
    from vila_mc.train.preflight import check_before_launch
    from vila_mc.train.rendezvous import Endpoint, meet

    _check_launch(parsed.ranks, parsed.nodes, parsed.rendezvous)
    at = Endpoint.parse(parsed.rendezvous)
    ranks, nodes = parsed.ranks or _gpus(), parsed.nodes
    check_before_launch(config, ranks * nodes)
    if parsed.check:
        say(f"recipe, datasets and checkpoint are fit for {ranks * nodes} ranks")
        return 0
    meeting = meet(at, config, machines=nodes, ranks=ranks) if nodes > 1 else None
    return launch([*_RANK_COMMAND, *given], ranks=ranks, meeting=meeting)


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
        "--presets", action="store_true", help="list what --config preset:NAME knows, and end"
    )
    launching.add_argument(
        "--check",
        action="store_true",
        help="refuse what can be seen before ranks start (data, checkpoint, layout), and end",
    )
    add_rehearsal_options(parser)
    add_config_options(parser)
    return parser


def _check_launch(ranks: int | None, nodes: int, rendezvous: str) -> None:
    if (ranks is not None and ranks < 1) or nodes < 1:
        raise ConfigError(f"--ranks is {ranks} and --nodes is {nodes}; each must be at least 1.")
    if nodes > 1 and rendezvous == ALONE:
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

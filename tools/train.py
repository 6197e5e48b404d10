"""Train one phase of a VILA.

On one machine: ``python tools/train.py --config RECIPE.yaml --ranks 4``. On a cluster, start it
once per machine with --nodes and --rendezvous, or start it under torchrun.
"""

import os
import sys

from vila_mc.config.load import ErrorRaisingParser, add_config_options, load_run_from_args
from vila_mc.errors import ConfigError, SetupError, run_cli

ALONE = "localhost:0"
"""The rendezvous of one machine: any free port."""


def main() -> int:
    parser = ErrorRaisingParser(
        description=__doc__.splitlines()[0],
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
    add_config_options(parser)
    arguments = parser.parse_args()
    config = load_run_from_args(arguments)

    if "RANK" in os.environ:
        from vila_mc.train.rank import train_rank

        return train_rank(config)

    from vila_mc.train.launch import launch
    from vila_mc.train.preflight import check_before_launch

    _check_launch(arguments.ranks, arguments.nodes, arguments.rendezvous)
    ranks = arguments.ranks or _gpus()
    check_before_launch(config, ranks * arguments.nodes)
    return launch(
        [os.path.abspath(__file__), *sys.argv[1:]],
        ranks=ranks,
        nodes=arguments.nodes,
        rendezvous=arguments.rendezvous,
    )


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

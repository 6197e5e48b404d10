"""``vila-mc train --rehearse``: one step of a run on GPUs that are not there."""

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from vila_mc.commands.gpu_kind import DEFAULT, HELP, gpu_named
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, ExitCode, say
from vila_mc.files import write_whole
from vila_mc.rehearsal.refusals import refuse_what_cannot_be_rehearsed
from vila_mc.topology.layout import Layout

_FIRST_STEPS = 64


def add_rehearsal_options(parser: ArgumentParser) -> None:
    """Add ``--rehearse`` and what goes with it."""
    group = parser.add_argument_group("rehearsing")
    group.add_argument(
        "--rehearse",
        action="store_true",
        help="train nothing: play one step of the run on GPUs that are not there, and say what it "
        "takes (exit code 1 if it does not fit, or something is wrong)",
    )
    group.add_argument(
        "--as-ranks", type=int, metavar="N", help="ranks to play (default: --ranks x --nodes)"
    )
    group.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="what one GPU holds (default: what one of --gpu does)",
    )
    group.add_argument("--gpu", metavar="KIND", help=HELP)
    group.add_argument(
        "--first-steps",
        type=int,
        metavar="N",
        help="where the datasets of data.blend are here, take the microbatch of the first N steps "
        f"with the most images (default: {_FIRST_STEPS}); 0 takes rows full of images",
    )
    group.add_argument("--json", action="store_true", help="print everything as JSON")
    group.add_argument(
        "--rehearsal",
        type=Path,
        metavar="FILE",
        help="write everything as JSON beside what is printed, for the page of vila-mc plan",
    )


def refuse_unrehearsed(parsed: Namespace) -> None:
    """Refuse options that go with ``--rehearse`` alone, or not with it. Raises ConfigError."""
    alone = {"--as-ranks": parsed.as_ranks, "--gpu": parsed.gpu}
    alone |= {"--gpu-memory": parsed.gpu_memory, "--first-steps": parsed.first_steps}
    alone |= {"--json": parsed.json or None, "--rehearsal": parsed.rehearsal}
    given = [name for name, value in alone.items() if value is not None]
    if given and not parsed.rehearse:
        raise ConfigError(
            f"{given[0]} is given without --rehearse, so it would change nothing. Add --rehearse, "
            "or leave it out."
        )
    if parsed.rehearse and parsed.check:
        raise ConfigError(
            "--rehearse and --check are both given. --check looks at data, checkpoint and layout, "
            "--rehearse plays a step without weights or samples; start one after the other."
        )


def rehearse_run(config: RunConfig, parsed: Namespace) -> int:
    """Play a step of every distinct rank, here and now.

    Returns:
        the exit code: 0 if every rank fits, gets to its end and matches the others, else 1.

    Raises:
        VilaError: the run cannot be rehearsed.
    """
    if "RANK" in os.environ:
        raise ConfigError("--rehearse plays all ranks itself. Start it once, without a launcher.")
    if parsed.gpu_memory is not None and not 0 < parsed.gpu_memory < float("inf"):
        raise ConfigError(f"--gpu-memory is {parsed.gpu_memory:g}; it must be greater than 0.")
    first_steps = _FIRST_STEPS if parsed.first_steps is None else parsed.first_steps
    if first_steps < 0:
        raise ConfigError(f"--first-steps is {first_steps}; it must be 0 or greater.")
    ranks = parsed.as_ranks if parsed.as_ranks is not None else (parsed.ranks or 0) * parsed.nodes
    if ranks < 1:
        given = "not given" if parsed.as_ranks is None else parsed.as_ranks
        raise ConfigError(f"--as-ranks is {given}. Say how many ranks to play, 1 or more.")
    if parsed.rehearsal is not None and parsed.rehearsal.is_dir():
        raise ConfigError(f"--rehearsal is {parsed.rehearsal}, a directory. Name a file.")
    held = gpu_named(parsed.gpu or DEFAULT).memory
    if parsed.gpu_memory is not None:
        held = parsed.gpu_memory * 2**30
    Layout.of(config.parallel, ranks)
    refuse_what_cannot_be_rehearsed(config)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # no GPU is touched where there are some
    from vila_mc.rehearsal.every_rank import rehearse
    from vila_mc.rehearsal.report import as_dict, as_text, is_good
    from vila_mc.train.micro_batch import with_micro_batch

    config, micro_batch_line = with_micro_batch(config, Layout.of(config.parallel, ranks))
    config.check_world(ranks)
    rehearsal = rehearse(config, ranks, first_steps)
    values = json.dumps(as_dict(rehearsal, held), indent=2)
    if parsed.json:
        say(values)
    else:
        say(f"{micro_batch_line}\n{as_text(rehearsal, held)}".lstrip("\n"))
    if parsed.rehearsal is not None:  # last: a disk may be full, and minutes were spent
        write_whole(parsed.rehearsal, values + "\n")
    return ExitCode.OK if is_good(rehearsal, held) else ExitCode.FAULT

"""What a run is, written down each time that it starts."""

import os
import socket
import time
from dataclasses import asdict
from pathlib import Path

import torch

from vila_mc.checkpoint.manifest import versions
from vila_mc.config.load import run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.observe.git import git_state
from vila_mc.observe.history import restarts_before
from vila_mc.observe.record import FORMAT_VERSION, StartRecord
from vila_mc.parallel.groups import Ranks
from vila_mc.parallel.installed import accelerator_versions


def start_facts(config: RunConfig, ranks: Ranks, after_step: int) -> StartRecord:
    """The record of a start, now, that goes on after ``after_step``; as the first rank sees it."""
    return StartRecord(
        format_version=FORMAT_VERSION,
        time=time.time(),
        step=after_step,
        steps=config.train.steps,
        phase=config.train.phase,
        ranks=ranks.layout.world_size(),
        restart=restarts_before(os.environ),
        host=socket.gethostname(),
        device=device_name(ranks.device),
        layout=asdict(ranks.layout),
        versions=versions() | accelerator_versions(),
        git=git_state(Path(__file__).parent),
        config=run_to_dict(config),
    )


def device_name(device: torch.device) -> str:
    """``cpu``, or what the driver calls a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

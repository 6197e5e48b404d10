"""Whether a model and what it reads fit in memory, found before its weights are loaded."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, say
from vila_mc.parallel.agreement import greatest
from vila_mc.parallel.groups import Ranks
from vila_mc.topology.answering_memory import cached_bytes, passing_bytes, weight_bytes

MOST_ROWS = 32
"""Prompts at a time where there is room for more."""
_USABLE = 0.9
"""Share of free memory that is planned with: the rest is for images and what libraries take."""
_WORTH_SAYING = 2**30
"""Bytes of a rank below which nobody needs to know."""


@dataclass(slots=True)
class Room:
    """What is to be read at a time, and how much of it fits."""

    positions: Callable[[ModelConfig], int]
    """Of the longest prompt and its answer, at most about."""
    rows: int | None = None
    """Prompts at a time; where it is None, ``settle`` finds it."""

    def settle(self, config: RunConfig, ranks: Ranks) -> None:
        """Find ``rows``, and say in one line what this takes; every rank must call this.

        Raises:
            ConfigError: the device of this rank has less memory.
        """
        weights, free = weight_bytes(config), free_bytes(ranks.device)
        positions = min(self.positions(config.model), config.model.language.max_positions)
        row = positions * (cached_bytes(config) + passing_bytes(config))
        fitting = max(0, int(_USABLE * free) - weights) // row
        rows = self.rows or min(MOST_ROWS, max(1, fitting))
        where = "GPU" if ranks.device.type == "cuda" else "host memory"
        what = (
            f"each rank takes about {_gib(weights)} for weights and {_gib(rows * row)} to read "
            f"{rows} x {positions:,} positions, of {_gib(free)} free ({where})"
        )
        if rows > fitting:
            is_too_large = not fitting
            advice = (
                "Let more ranks hold one copy together, or free memory"
                if is_too_large
                else "Ask fewer at a time, or let more ranks hold one copy together"
            )
            raise ConfigError(
                f"the model does not fit: {what}. {advice}.",
                option="tensor" if is_too_large else "batch",
            )
        if weights + rows * row >= _WORTH_SAYING and ranks.is_first():
            say(what, to_stderr=True)
        self.rows = -greatest(-rows, ranks.device)  # the fewest of all ranks


def free_bytes(device: torch.device) -> int:
    """What a rank may take; of a host's memory, the ranks on it take equal shares."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    return int(psutil.virtual_memory().available) // here


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"

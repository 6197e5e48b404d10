"""What a run was each time it started: one JSON object a start."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vila_mc.observe.metrics import read_metrics
from vila_mc.observe.record import StartRecord

STARTS_NAME = "starts.jsonl"


def add_start(directory: Path, record: StartRecord) -> None:
    """Append to ``directory/starts.jsonl``."""
    with open(directory / STARTS_NAME, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """The starts of a run, first to last; a line that is not whole is passed over."""
    return read_metrics(directory / STARTS_NAME)

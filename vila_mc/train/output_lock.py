"""One run at a time in one output directory."""

from pathlib import Path

from vila_mc.errors import SetupError
from vila_mc.files import Lock

_PATIENCE_SECONDS = 30.0
"""A run whose launcher was killed may still be saving when it is started again."""


def lock_output(directory: Path) -> Lock:
    """Hold ``train.output``, which must exist. Raises SetupError: another run holds it."""
    try:
        return Lock(directory, _PATIENCE_SECONDS)
    except BlockingIOError:
        raise SetupError(
            f"another run is writing to {directory}. Wait for it or stop it, or set train.output "
            "to another directory."
        ) from None

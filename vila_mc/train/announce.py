"""Lines that a run says once, not once on every rank."""

from vila_mc.errors import say
from vila_mc.parallel.groups import Ranks


def announce(ranks: Ranks, line: str) -> None:
    """Print a line on the first rank; nothing if it is empty."""
    if line and ranks.is_first():
        say(line)


def warn(ranks: Ranks, what: str | None) -> None:
    """The same of a warning, if there is something to warn of."""
    if what:
        announce(ranks, f"warning: {what}")

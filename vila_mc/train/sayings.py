"""What a launcher tells a person of its ranks' work when it is stopped or fails."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sayings:
    """Of one kind of work; what is empty is not said."""

    stopping: str
    """What ranks do when they are asked to stop."""
    stopped: str
    """What was left when they had done so."""
    before_work: str
    """The same where they had not begun."""
    kept: str
    """What is left, whatever happens to ranks."""


TRAINING = Sayings(
    stopping="every rank finishes its step or validation, and saves",
    stopped="stopped and saved; the same command goes on from there",
    before_work="stopped before the first step; nothing was lost",
    kept="checkpoints are whole: the same command goes on from the newest one",
)

"""Where a run stands between two steps."""

from dataclasses import dataclass

from vila_mc.flow import StepResult


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands. With the weights and the optimizer it is all there is to resume."""

    step: int
    samples_seen: int
    blend_since: int = 0
    """Where in ``samples_seen`` the order of the data begins."""
    bad_steps: int = 0
    """Steps in a row up to this one that changed nothing."""

    def position(self) -> int:
        """Samples read in the order of now."""
        return self.samples_seen - self.blend_since

    def after(self, result: StepResult, position: int) -> "TrainState":
        """Where it stands one step later, ``position`` samples into the order of now."""
        bad_steps = self.bad_steps + 1 if result.skipped else 0
        if result.overflowed:  # as many as it takes: the loss scale falls with each
            bad_steps = self.bad_steps
        return TrainState(self.step + 1, self.blend_since + position, self.blend_since, bad_steps)

"""When a run says that something looks wrong."""

from dataclasses import dataclass

from vila_mc.config.checks import STRICT, require, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """When a run says that something looks wrong. An alarm is a line and a record, and stops
    nothing."""

    __pydantic_config__ = STRICT

    window: int = 128
    """Steps that a step is compared with; of fewer than half of them nothing is said."""
    deviations: float | None = 10.0
    """Loss or gradient norm is said to be high from this many robust standard deviations (1.4826
    times the median absolute one) above the median of the window. none: never."""
    substitutes: float | None = 0.01
    """Share of the window's images that could not be decoded from which that is said; and again
    whenever it has doubled. none: never."""
    slowdown: float | None = 1.4
    """Steps are said to be slow that take this many times as long as the run's fastest window of
    them. none: never."""
    straggler: float | None = 1.3
    """A rank is said to be slow whose passes take this many times as long as those of the
    ranks that do the same work. none: never."""
    data_wait: float | None = 0.2
    """Share of the steps' time that a rank waits for its data from which that is said. none:
    never."""
    compare_ranks_every: int = 50
    """Steps between comparisons of the times of all ranks, for the two before."""
    repeat_after: int = 200
    """Steps that pass before the same is said again."""

    def __post_init__(self) -> None:
        require_positive(
            "train.alarms",
            window=self.window,
            compare_ranks_every=self.compare_ranks_every,
            repeat_after=self.repeat_after,
        )
        require(
            self.window >= 8,
            f"train.alarms.window is {self.window}; a median of fewer than 8 steps says little.",
        )
        for name in ("deviations", "substitutes", "data_wait"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"train.alarms.{name} is {value}; it must be greater than 0, or none.",
            )
        for name in ("substitutes", "data_wait"):
            value = getattr(self, name)
            require(
                value is None or value < 1,
                f"train.alarms.{name} is {value}; it is a share and must be below 1, or none.",
            )
        for name in ("slowdown", "straggler"):
            value = getattr(self, name)
            require(
                value is None or value > 1,
                f"train.alarms.{name} is {value}; it must be greater than 1, or none.",
            )

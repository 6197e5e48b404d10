"""What a sink is given after every optimizer step, and after every validation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step over the whole global batch; the fields are the names in every sink."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over all trained positions, in nats. It and the next may be no finite number."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Loss or gradient was not finite, so no weight was changed."""
    learning_rate: float
    trained_tokens: int
    """Positions with a label."""
    images: int
    samples: int
    filled: float
    """Share of the positions that hold a sample; the others are padding."""
    substitutes: int
    """Images that could not be decoded and were replaced."""
    loss_by_entry: list[float | None]
    """Mean over the trained positions of each entry of data.blend, in its order; null where a step
    trained none."""
    step_ms: float
    """Wall-clock time of the step, waiting for its data included, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """One measurement over all of ``data.validation``; the fields are the names in every sink."""

    step: int
    """Optimizer steps done before it."""
    validation_loss: float
    """Mean over all trained positions, in nats. It may be no finite number."""
    validation_tokens: int
    """Positions with a label."""
    validation_loss_by_entry: list[float | None]
    """Mean over the trained positions of each entry of data.validation, in its order; null where
    there are none."""
    validation_ms: float
    """Wall-clock time, in milliseconds."""

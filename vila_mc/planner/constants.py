"""What is fitted to measurements, not derived: how much of what hardware promises a step gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vila_mc.planner.job import Software


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Fitted by ``benchmarks/planner_accuracy.py --fit`` to a part of the published rows."""

    product: Mapping[str, float] = field(
        default_factory=lambda: {
            "a100 bf16": 0.756,
            "h100 bf16": 0.61,
            "h100 fp8": 0.541,
            "b200 bf16": 0.772,
            "b200 fp8": 0.54,
            "b200 block": 0.56,
            "b200 fp4": 0.31,
        }
    )
    """Share of the peak that large matrix products reach, by architecture and format, with what
    a format needs around them: scales, casts and transposes."""
    attention: Mapping[str, float] = field(
        default_factory=lambda: {"a100": 0.566, "h100": 0.329, "b200": 0.522}
    )
    """Share of the bf16 peak that flash attention reaches, forward and backward."""
    software: Mapping[Software, float] = field(
        default_factory=lambda: {
            "megatron": 1.0,
            "vila_mc": 1.0,
            "tests": 1.13,
            "loongforge": 1.18,
            "nanotron": 0.984,
            "veomni": 0.915,
            "fsdp": 1.06,
            "hugging_face": 1.45,
        }
    )
    """A step's time, and its launches, as a multiple of a tuned Megatron-Core's."""
    kept: Mapping[Software, float] = field(
        default_factory=lambda: {
            "megatron": 1.0,
            "vila_mc": 1.0,
            "tests": 1.0,
            "loongforge": 1.0,
            "nanotron": 1.45,
            "veomni": 1.0,
            "fsdp": 1.0,
            "hugging_face": 1.0,
        }
    )
    """Activations that a software keeps, as a multiple of what fused kernels need: nanotron's by
    hand, of all its rows."""
    memory: float = 0.899
    """Share of the memory's bandwidth that element-wise kernels reach."""
    kernel: float = 9.81e-06
    """Seconds that a kernel takes beyond its work: ramp up, tail, and what stands between two."""
    launch: float = 0.000818
    """Seconds in which the host starts a layer's forward kernels; twice as long for the backward
    pass. A layer takes no less."""
    link: float = 0.729
    """Share of NVLink's speed that sums over tensor-parallel ranks reach."""
    tensor_hidden: float = 0.795
    """Share of these sums' time that hides behind products where they overlap."""
    network: float = 0.82
    """Share of the network's speed that data-parallel sums reach."""
    data_hidden: float = 0.198
    """Share of the last backward pass behind which data-parallel sums may hide, where they
    overlap."""
    latency: float = 5.77e-06
    """Seconds that each member adds to a collective."""
    step: float = 0.048
    """Seconds of a step beside passes, sums and weights: data, logs, the norm of the gradient."""
    band: tuple[float, float] = (0.85, 1.2)
    """Foretold throughput over what was measured: between these lay 87 of 100 rows that the
    constants were not fitted to. So did memory, of which one constant is fitted, of all rows."""


ARCHITECTURE: Mapping[str, str] = {
    "a100-40g": "a100",
    "a100-80g": "a100",
    "a800-80g": "a100",
    "h100-pcie": "h100",
    "h100-80g": "h100",
    "h200": "h100",
    "b200": "b200",
    "gb200": "b200",
    "gb300": "b200",
}
"""Kinds of GPU that constants are fitted for together."""

FITTED = Constants()
"""What ``benchmarks/planner_accuracy.py --fit`` has found."""

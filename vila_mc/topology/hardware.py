"""GPUs as their makers describe them: what they compute, hold and send in a second.

Nothing here is measured; how much of it a training step gets is fitted in ``vila_mc.planner``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["fp32", "bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU in the machine that it is usually sold in."""

    name: str
    """As options name it."""
    title: str
    """Its name for people."""
    peak: Mapping[Arithmetic, float]
    """Dense FLOP/s by number format; a format that is missing is not computed by it."""
    memory: float
    """Bytes that a process may take: the product's size, less what the driver keeps (about 1 %)."""
    bandwidth: float
    """Bytes a second between the processor and its memory."""
    link: float
    """Bytes a second, one way, between two GPUs of a domain: NVLink, or PCIe without it."""
    domain: int
    """GPUs that reach each other at ``link``: a machine of 8, or a rack."""
    network: float
    """Bytes a second, one way, that one GPU may send out of its domain: its own network adapter."""


def _gpu(
    name: str,
    title: str,
    peak: dict[Arithmetic, float],
    gigabytes: float,
    terabytes_a_second: float,
    link: float,
    *,
    domain: int = 8,
    network: float = 50,
) -> Gpu:
    return Gpu(
        name=name,
        title=title,
        peak={kind: flops * 1e12 for kind, flops in peak.items()},
        memory=gigabytes * 1e9 * 0.99,
        bandwidth=terabytes_a_second * 1e12,
        link=link * 1e9,
        domain=domain,
        network=network * 1e9,
    )


_A100: dict[Arithmetic, float] = {"fp32": 19.5, "bf16": 312}
_H100: dict[Arithmetic, float] = {"fp32": 67, "bf16": 989, "fp8": 1979}
_GB200: dict[Arithmetic, float] = {"fp32": 80, "bf16": 2500, "fp8": 5000, "fp4": 10_000}

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA's data sheets: A100 (2021), A800, H100 (2022), H200 (2023), DGX B200 and GB200
        # NVL72 (2024), GB300 NVL72 (2025). Memory as nvidia-smi counts it: 80 GB are 80 GiB.
        _gpu("a100-40g", "A100 SXM 40 GB", _A100, 42.9, 1.555, 300, network=25),
        _gpu("a100-80g", "A100 SXM 80 GB", _A100, 85.9, 2.039, 300, network=25),
        _gpu("a800-80g", "A800 SXM 80 GB", _A100, 85.9, 2.039, 200, network=25),
        _gpu(
            "h100-pcie",
            "H100 PCIe 80 GB",
            {"fp32": 51, "bf16": 756, "fp8": 1513},
            85.9,
            2.0,
            64,
            network=25,
        ),
        _gpu("h100-80g", "H100 SXM 80 GB", _H100, 85.9, 3.35, 450),
        _gpu("h200", "H200 SXM 141 GB", _H100, 151.4, 4.8, 450),
        _gpu(
            "b200",
            "B200 180 GB",
            {"fp32": 75, "bf16": 2250, "fp8": 4500, "fp4": 9000},
            192.0,
            7.7,
            900,
        ),
        _gpu("gb200", "GB200 NVL72 186 GB", _GB200, 198.0, 8.0, 900, domain=72),
        _gpu(
            "gb300",
            "GB300 NVL72 288 GB",
            {**_GB200, "fp4": 15_000},
            300.0,
            8.0,
            900,
            domain=72,
            network=100,
        ),
    )
}

_DEVICE_NAMES: Mapping[str, str] = {
    "a100-40g": r"A100-(SXM4|PCIE)-40GB",
    "a100-80g": r"A100-SXM4-80GB|A100 80GB PCIe",
    "a800-80g": r"A800-SXM4-80GB",
    "h100-pcie": r"H100 PCIe",
    "h100-80g": r"H100 80GB HBM3",
    "h200": r"H200",
    "b200": r"B200",
    "gb200": r"GB200",
    "gb300": r"GB300",
}
"""What drivers call a whole one. A part of one (MIG), and kinds with other peaks (NVL), are no
match."""


def gpu_of_device(device_name: str) -> Gpu | None:
    """The kind of a GPU by the name that its driver gives it; None where its peak is not known.

    ``NVIDIA H100 80GB HBM3`` is ``h100-80g``.
    """
    name = device_name.removeprefix("NVIDIA ")
    return next(
        (GPUS[kind] for kind, names in _DEVICE_NAMES.items() if re.fullmatch(names, name)), None
    )

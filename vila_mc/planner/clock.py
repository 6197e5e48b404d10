"""How long operators and collectives take on a GPU: a roofline, and what is fitted above it."""

from dataclasses import dataclass

from vila_mc.planner.constants import ARCHITECTURE, Constants
from vila_mc.planner.job import Job
from vila_mc.planner.work import Operator
from vila_mc.topology.hardware import Gpu


@dataclass(frozen=True, slots=True)
class Clock:
    """Times, in seconds, of one job on one kind of GPU."""

    gpu: Gpu
    job: Job
    constants: Constants

    def forward(self, operators: tuple[Operator, ...]) -> float:
        """Of a forward pass through operators."""
        return sum(self._one(one, 1.0, 1.0) for one in operators)

    def backward(self, operators: tuple[Operator, ...], weights: bool) -> float:
        """Of the backward pass through them, with or without gradients of weights."""
        total = 0.0
        for one in operators:
            if one.kind == "product":
                total += self._one(one, 1.0, 1.0) * (1 + (weights and one.has_weight))
            elif one.kind == "attention":
                total += self._one(one, 2.5, 2.0)
            else:
                total += self._one(one, 1.0, 2.0)
        return total

    def moved(self, amount: float) -> float:
        """Of bytes through the GPU's memory."""
        return amount / (self.gpu.bandwidth * self.constants.memory)

    def summed(self, amount: float, members: int) -> float:
        """Of the sum of ``amount`` bytes over ranks of one domain, each of which gets all of it."""
        if members == 1:
            return 0.0
        speed = self.gpu.link * self.constants.link
        if members > self.gpu.domain:
            speed = min(speed, self._network(self.gpu.domain))
        ring = 2 * (members - 1) / members * amount / speed
        return ring + 2 * self.constants.latency

    def spread(self, amount: float, members: int, stride: int, calls: float) -> float:
        """Of scattering or gathering ``amount`` bytes in ``calls`` among ranks ``stride`` apart."""
        if members == 1:
            return 0.0
        near = max(1, min(members, self.gpu.domain // stride))  # of them in a domain
        speed = self.gpu.link * self.constants.link
        if members > near:
            speed = min(speed, self._network(near))
        ring = (members - 1) / members * amount / speed
        return ring + calls * members * self.constants.latency

    def sent(self, amount: float, is_near: bool) -> float:
        """Of ``amount`` bytes from one rank to another."""
        speed = self.gpu.link * self.constants.link if is_near else self._network(1)
        return amount / speed + self.constants.latency

    def _network(self, adapters: int) -> float:
        return self.gpu.network * adapters * self.constants.network

    def _one(self, operator: Operator, flops: float, moved: float) -> float:
        traffic = self.moved(operator.moved * moved)
        if operator.kind == "memory":
            return traffic + self.constants.kernel
        work = operator.flops * flops / self._speed(operator)
        return max(work, traffic) + self.constants.kernel

    def _speed(self, operator: Operator) -> float:
        kind = ARCHITECTURE[self.gpu.name]
        arithmetic = self.job.arithmetic
        if operator.kind == "attention":
            return self.gpu.peak["bf16"] * self.constants.attention[kind]
        if not operator.is_quantised or arithmetic in ("bf16", "fp32"):
            return self.gpu.peak["bf16"] * self.constants.product[f"{kind} bf16"]
        format_ = "block" if self.job.block_scaled and arithmetic == "fp8" else arithmetic
        key = f"{kind} {format_}"
        if key not in self.constants.product:
            key = f"{kind} {arithmetic}"
        return self.gpu.peak[arithmetic] * self.constants.product[key]

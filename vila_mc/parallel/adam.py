"""AdamW as Megatron-Core's distributed optimizer expects it, for machines without fused kernels.

With Transformer Engine or NVIDIA Apex, Megatron-Core uses their FusedAdam and nothing here is
active. Without them, version 0.19.2 falls back to ``torch.optim.AdamW``, whose state is created
lazily and whose ``step`` is one tensor per parameter: a distributed checkpoint of it fails to load,
and with the obvious repair it loads one shared ``step`` that is then advanced once per parameter,
so that a resumed run silently diverges. The class below keeps ``step`` in the parameter group, as
FusedAdam does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from vila_mc.parallel.installed import has_apex_optimizer, has_transformer_engine
from vila_mc.parallel.megatron_patches import GROUP_STEP_ADAMW


class GroupStepAdamW(torch.optim.Optimizer):
    """Decoupled Adam (arXiv 1711.05101) with one ``step`` per parameter group.

    Args:
        params: parameters or groups.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        adam_w_mode: must be true; kept because FusedAdam's callers pass it.
        capturable: ignored; it concerns CUDA graphs.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        first = [self.state[p]["exp_avg"] for p in parameters]
        second = [self.state[p]["exp_avg_sq"] for p in parameters]
        # The kernel of torch.optim.AdamW(fused=True), which wants a step for each parameter: here
        # all share one. A chain of torch._foreach operations takes 3 times as long on a CPU, and 4
        # bytes more for each weight.
        step = torch.tensor(float(group["step"]), device=parameters[0].device)
        torch._fused_adamw_(
            *(parameters, gradients, first, second, [], [step] * len(parameters)),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def optimizer_line() -> str:
    """A few words about whose Adam is used. All compute the same, and read each other's state."""
    owner = _fused_adam_of()
    return f"optimizer {f'FusedAdam of {owner}' if owner else 'AdamW of vila_mc'}"


def _fused_adam_of() -> str | None:
    """Whose FusedAdam Megatron-Core takes, in its order; None where there is none that works."""
    if has_transformer_engine():
        return "Transformer Engine"
    return "NVIDIA Apex" if has_apex_optimizer() else None


@contextmanager
def group_step_adamw() -> Iterator[None]:
    """While active, Megatron-Core builds ``GroupStepAdamW`` where it has no FusedAdam.

    It would take one from an Apex without kernels, which fails when it is built.
    """
    if _fused_adam_of() is not None:
        yield
        return
    # 0.19.2 copies into fp32 shards, which are views of leaves that require gradients.
    load = DistributedOptimizer._set_main_param_and_optimizer_states
    with GROUP_STEP_ADAMW.applied(GroupStepAdamW, False, True, True, torch.no_grad()(load)):
        yield

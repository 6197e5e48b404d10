"""The loss scale of fp16, over one step."""

import math

from megatron.core.optimizer.optimizer import MegatronOptimizer


class LossScale:
    """What the loss scale was before gradients are looked at, which may lower it.

    Args:
        optimizer: Megatron-Core's; one without a loss scale is none of fp16.
    """

    def __init__(self, optimizer: MegatronOptimizer) -> None:
        scalers = (getattr(part, "grad_scaler", None) for part in optimizer.chained_optimizers)
        self._scalers = [scaler for scaler in scalers if scaler is not None]
        self._before = [scaler.state_dict() for scaler in self._scalers]
        self._optimizer, self._scale = optimizer, float(optimizer.get_loss_scale())

    def settle(self, loss: float) -> bool:
        """Whether the step overflowed, once its loss is known, and every rank has the same.

        A loss that is not finite is no fault of the scale, which is put back: the step counts as a
        bad one, and only there.
        """
        if math.isfinite(loss):
            return float(self._optimizer.get_loss_scale()) < self._scale
        for scaler, state in zip(self._scalers, self._before, strict=True):
            scaler.load_state_dict(state)
        return False

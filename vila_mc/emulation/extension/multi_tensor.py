"""Optimizer arithmetic over lists of tensors.

Source: common/multi_tensor/adam.cu, l2norm.cu, scale.cu, pytorch/csrc/extensions/multi_tensor/.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Lists = Sequence[Sequence[Tensor]]


def multi_tensor_adam(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Lists,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """One step of Adam; the flag is not heeded, so that what is not finite is seen.

    Args:
        tensor_lists: gradients, parameters, first and second moments, and fp32 masters if any.
        mode: 0 adds the decay to the gradient, 1 to the update (AdamW).
    """
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    grads, params, firsts, seconds = tensor_lists[:4]
    masters = tensor_lists[4] if len(tensor_lists) > 4 else params
    for grad, param, first, second, master in zip(
        grads, params, firsts, seconds, masters, strict=True
    ):
        weight, gradient = master.float(), grad.float()
        if mode == 0:
            gradient = gradient + weight_decay * weight
        m = beta1 * first.float() + (1 - beta1) * gradient
        v = beta2 * second.float() + (1 - beta2) * gradient * gradient
        update = (m / correction1) / ((v / correction2).sqrt() + epsilon)
        if mode == 1:
            update = update + weight_decay * weight
        weight = weight - lr * update
        first.copy_(m)
        second.copy_(v)
        master.copy_(weight)
        if param is not master:
            param.copy_(weight)


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: Lists, per_tensor: bool | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of all [1], and of each if asked; the flag is raised where one is not finite."""
    norms = torch.stack([tensor.float().norm() for tensor in tensor_lists[0]])
    if not norms.isfinite().all():
        noop_flag.fill_(1)
    return norms.norm().reshape(1), norms if per_tensor else torch.empty(0)


def multi_tensor_unscale_l2norm(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Lists,
    inv_scale: Tensor,
    per_tensor: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The same of the tensors times ``inv_scale`` [1]."""
    norm, norms = multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor)
    return norm * inv_scale.float(), norms * inv_scale.float()


def multi_tensor_scale(
    chunk_size: int, is_infinite: Tensor, tensor_lists: Lists, scale: float
) -> None:
    """[inputs, outputs]: output = input * scale; the flag is raised where one is not finite."""
    for source, target in zip(*tensor_lists, strict=True):
        if not source.isfinite().all():
            is_infinite.fill_(1)
        target.copy_(source.float() * scale)


def multi_tensor_scale_tensor(
    chunk_size: int, is_infinite: Tensor, tensor_lists: Lists, scale: Tensor
) -> None:
    """The same with a factor [1] on the device."""
    multi_tensor_scale(chunk_size, is_infinite, tensor_lists, float(scale))

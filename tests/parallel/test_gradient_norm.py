"""The norm on the device is that of Megatron-Core, and clipping does what its own does."""

import torch
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_scale

from tests.support.ranks import run_ranks
from vila_mc.config.parallel import ParallelConfig
from vila_mc.parallel.groups import distributed


def both_ways() -> tuple[float, float, bool]:
    """Norms of the same gradients, and whether they are clipped alike."""
    torch.manual_seed(3)
    grads = [torch.randn(size) * size for size in (1, 7, 1024, 333)]
    reference = torch.cat(grads).double().norm().item()
    with distributed(ParallelConfig(), seed=1):
        norm = clip_grads.get_grad_norm_fp32(grads)
        ours = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
        for weight, grad in zip(ours, grads, strict=True):
            weight.grad = grad.clone()
        clip_grads.clip_grad_by_total_norm_fp32(ours, 1.0, norm)
        theirs = [grad.clone() for grad in grads]
        local_multi_tensor_scale(0, None, [theirs, theirs], 1.0 / (norm + 1e-6))
    clipped = [weight.grad for weight in ours if weight.grad is not None]
    equal = [torch.equal(one, other) for one, other in zip(clipped, theirs, strict=True)]
    return norm, reference, all(equal)


def test_norm_and_clipping() -> None:
    ((norm, reference, are_equal),) = run_ranks(1, both_ways)
    assert abs(norm / reference - 1) < 1e-6
    assert are_equal

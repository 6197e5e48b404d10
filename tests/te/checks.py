"""Each family of the extension beside an independent computation. Imported under emulation alone.

A check returns its worst difference as a fraction of what it tolerates.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from torch import Tensor
from torch import distributed as dist
from transformer_engine.common import recipe
from transformer_engine.pytorch.constants import TE_DType
from transformer_engine.pytorch.cpp_extensions import general_gemm
from transformer_engine.pytorch.optimizers import FusedAdam
from transformer_engine.pytorch.tensor import (
    Float8BlockQuantizer,
    Float8CurrentScalingQuantizer,
    MXFP8Quantizer,
)
from transformer_engine.pytorch.tensor.utils import quantize_master_weights

from tests.te import modules, recipes
from tests.te.attention_checks import attention, packed_attention, rope, softmax
from tests.te.modules import FP8, FP32, relative, worst


def _modules(*cases: str, dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    def check() -> float:
        found = [modules.differences(case, dtype) for case in cases]
        return worst((d for each in found for d in each.values()), FP32)

    return check


def _recipe(name: str) -> Callable[[], float]:
    def check() -> float:
        steps = recipes.linear_differences(name)
        return worst((d for step in steps for d in step.values()), FP8)

    return check


def fused_quantization() -> float:
    """Norm and product in FP8, each recipe."""
    names = ("delayed", "current", "blockwise")
    return worst((recipes.fused_differences(name)["output"] for name in names), FP8)


def accumulation() -> float:
    """Weight gradients of two microbatches in one fp32 buffer."""
    linear = te.Linear(64, 96, bias=False, fuse_wgrad_accumulation=True)
    linear.weight.main_grad = torch.zeros(96, 64)
    pairs = [(torch.randn(16, 64), torch.randn(16, 96)) for _ in range(2)]
    for x, grad in pairs:
        linear(x.requires_grad_()).backward(grad)
    wanted = torch.stack([grad.t() @ x.detach() for x, grad in pairs]).sum(0)
    return worst([relative(linear.weight.main_grad, wanted)], FP32)


def gelu_of_a_product() -> float:
    """gelu(x w^T + b) and its input; dy w times the derivative of gelu."""
    w, x, bias, dy = (torch.randn(s) for s in ((96, 64), (16, 64), (96,), (16, 96)))
    hidden = x @ w.t() + bias
    output, _, before, _ = general_gemm(w, x, bias=bias, gelu=True)
    slope = _slope(ACTIVATIONS["gelu"], x)
    dx, *_ = general_gemm(w, dy, layout="NN", grad=True, gelu=True, gelu_in=x)
    pairs = ((output, ACTIVATIONS["gelu"](hidden)), (before, hidden), (dx, dy @ w * slope))
    return worst((relative(*pair) for pair in pairs), 2e-6)


def quantizers() -> float:
    """Casts bit for bit, on values from 2^-30 to 2^4 and rows of nothing, both copies."""
    values = torch.randn(160, 256) * 2.0 ** torch.randint(-30, 4, (160, 256))
    values[7], values[8] = 0, 1e-37  # whose scale would overflow
    values = values.bfloat16()
    squares = dict(block_scaling_dim=2, rowwise=True, columnwise=True)
    rows = dict(squares, block_scaling_dim=1)
    found = []
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        dtype = TE_DType[kind]
        current = Float8CurrentScalingQuantizer(dtype, device=torch.device("cpu"))
        found.append((current(values).dequantize(), recipes.by_tensor(values, kind)))
        for quantizer, by in (
            (Float8BlockQuantizer(dtype, **squares), recipes.by_squares),
            (Float8BlockQuantizer(dtype, **rows), recipes.by_rows),
        ):
            found.append((quantizer(values).dequantize(), by(values, kind)))
        columns = Float8BlockQuantizer(dtype, **rows)
        tensor = columns(values)
        tensor.update_usage(rowwise_usage=False)
        found.append((tensor.dequantize(), recipes.by_columns(values, kind)))
    return float(sum(int((got != right.bfloat16()).sum()) for got, right in found))


def mxfp8_quantizer() -> float:
    """The same of MXFP8."""
    values = (torch.randn(64, 96) * 2.0 ** torch.randint(-30, 4, (64, 96))).bfloat16()
    quantizer = MXFP8Quantizer(TE_DType[torch.float8_e4m3fn], rowwise=True, columnwise=True)
    tensor = quantizer(values)
    rows = tensor.dequantize()
    tensor.update_usage(rowwise_usage=False)
    wanted = recipes.by_thirty_twos(values.t(), torch.float8_e4m3fn).t()
    wrong = rows != recipes.by_thirty_twos(values, torch.float8_e4m3fn).bfloat16()
    return float((wrong | (tensor.dequantize() != wanted.bfloat16())).sum())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "qgelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x * (x > 0),
    "srelu": lambda x: x * x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
GATES = {
    "geglu": "gelu",
    "qgeglu": "qgelu",
    "reglu": "relu",
    "sreglu": "srelu",
    "swiglu": "silu",
}


def activations() -> float:
    """Values and gradients of all, and the bias gradients that come with some."""
    found = []
    for name, function in ACTIVATIONS.items():
        x, grad = torch.randn(8, 32), torch.randn(8, 32)
        slope = _slope(function, x)
        bias, dx = getattr(tex, f"dbias_d{name}")(grad, x, None)
        found += [relative(getattr(tex, name)(x, None), function(x)), relative(dx, grad * slope)]
        found += [relative(bias, (grad * slope).sum(0))]
        found += [relative(getattr(tex, f"d{name}")(grad, x, None), grad * slope)]
    for name, function in {k: ACTIVATIONS[v] for k, v in GATES.items()}.items():
        x, grad = torch.randn(8, 64), torch.randn(8, 32)
        gate, up = x[:, :32], x[:, 32:]
        wanted = torch.cat([grad * up * _slope(function, gate), grad * function(gate)], 1)
        found += [relative(getattr(tex, name)(x, None), function(gate) * up)]
        found += [relative(getattr(tex, f"d{name}")(grad, x, None), wanted)]
    return worst(found, 2e-6)


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """By central differences in fp64: nothing of autograd's."""
    x, step = x.double(), 1e-6
    return ((function(x + step) - function(x - step)) / (2 * step)).float()


def adam() -> float:
    """Five steps of FusedAdam against torch.optim.AdamW and Adam."""
    found = []
    for is_decoupled, reference in ((True, torch.optim.AdamW), (False, torch.optim.Adam)):
        start = torch.randn(50)
        ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
        options: dict[str, Any] = dict(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        optimizers = (
            FusedAdam([ours], adam_w_mode=is_decoupled, **options),
            reference([theirs], **options),
        )
        for _ in range(5):
            grad = torch.randn(50)
            for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
                parameter.grad = grad.clone()
                optimizer.step()
        found.append(relative(ours, theirs))
    return worst(found, FP32)


def multi_tensor() -> float:
    """Norms and scaling of lists, and the flag that something is not finite."""
    lists = [torch.randn(7), torch.randn(3, 5).bfloat16()]
    flag = torch.zeros(1, dtype=torch.int32)
    norm, norms = tex.multi_tensor_l2norm(2048, flag, [lists], True)
    unscaled, _ = tex.multi_tensor_unscale_l2norm(2048, flag, [lists], torch.tensor([0.5]), False)
    each = torch.stack([t.double().square().sum() for t in lists])
    scaled = [torch.empty(7), torch.empty(3, 5)]
    tex.multi_tensor_scale(2048, flag, [lists, scaled], 0.25)
    found = [
        relative(norm, each.sum().sqrt()[None]),
        relative(norms, each.sqrt()),
        relative(unscaled, each.sum().sqrt()[None] / 2),
        *(relative(got, t.float() / 4) for got, t in zip(scaled, lists, strict=True)),
        float(flag),
    ]
    tex.multi_tensor_scale(2048, flag, [[torch.tensor([math.inf])], [torch.empty(1)]], 1.0)
    return worst([*found, 1.0 - float(flag)], FP32)


def padding() -> float:
    """Groups of 3 and 5 rows among zeros, and back."""
    rows = torch.randn(8, 4)
    padded, back = torch.full((16, 4), math.nan), torch.full((8, 4), math.nan)
    tex.fused_multi_row_padding(rows, padded, [3, 5], [8, 8])
    tex.fused_multi_row_unpadding(padded, back, [8, 8], [3, 5])
    wanted = torch.zeros(16, 4)
    wanted[:3], wanted[8:13] = rows[:3], rows[3:]
    return worst([relative(padded, wanted), relative(back, rows)], FP32)


def master_weights() -> float:
    """FP8 parameters from fp32 masters, as a distributed optimizer casts them."""
    recipes_of: dict[Any, Callable[[Tensor, torch.dtype], Tensor]] = {
        recipe.DelayedScaling: lambda values, kind: recipes.cast(values, kind, 1.0),
        recipe.Float8CurrentScaling: recipes.by_tensor,
        recipe.Float8BlockScaling: recipes.by_squares,
    }
    return worst((_of_masters(*each) for each in recipes_of.items()), FP32)


def mxfp8_master_weights() -> float:
    """The same with MXFP8."""
    return worst([_of_masters(recipe.MXFP8BlockScaling, recipes.by_thirty_twos)], FP32)


def _of_masters(scaling: Any, quantized: Callable[[Tensor, torch.dtype], Tensor]) -> float:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    with te.fp8_model_init(enabled=True, recipe=scaling()):
        weight = te.Linear(256, 160, bias=False, params_dtype=torch.bfloat16).weight
    master = torch.randn(160 * 256) * 3
    quantize_master_weights([weight], [master], [0], dist.group.WORLD)
    # Transformer Engine rounds masters to the parameter's type on the way.
    wanted = quantized(master.bfloat16().view(160, 256), torch.float8_e4m3fn)
    return relative(weight.dequantize(dtype=torch.float32), wanted)


def delayed_scales() -> float:
    """Histories and scales after one update, by hand."""
    history = torch.tensor([[0.0, 0.0, 5.0], [3.0, 7.0, 1.0], [2.0, 1.0, 9.0]])
    scale = torch.tensor([1.0, 2.0, 3.0])
    latest = torch.tensor([4.0, math.inf, 0.0])  # the third has its news in the history
    tex.fused_amax_and_scale_update_after_reduction(
        latest, [history], [scale], "max", tex.DType.kFloat8E4M3, 1.0
    )
    wanted_history = [[0.0, 0.0, 0.0], [2.0, 1.0, 9.0], [4.0, 1e30, 5.0]]
    wanted_scale = torch.tensor([224.0 / 4, 2.0, 224.0 / 9])
    history = history.clamp(max=1e30)
    return worst(
        [
            float((history - torch.tensor(wanted_history)).abs().max()),
            relative(scale, wanted_scale),
        ],
        FP32,
    )


CHECKS: dict[str, Callable[[], float]] = {
    "linear": _modules("Linear"),
    "layer norm": _modules("LayerNorm", "LayerNorm and Linear"),
    "rms norm": _modules("RMSNorm", "RMSNorm and Linear"),
    "mlp": _modules("MLP with gelu", "MLP with swiglu"),
    "delayed": _recipe("delayed"),
    "current": _recipe("current"),
    "blockwise": _recipe("blockwise"),
    "mxfp8": _recipe("mxfp8"),
    "fused quantization": fused_quantization,
    "quantizers": quantizers,
    "mxfp8 quantizer": mxfp8_quantizer,
    "accumulation": accumulation,
    "gelu of a product": gelu_of_a_product,
    "activations": activations,
    "attention": attention,
    "packed attention": packed_attention,
    "softmax": softmax,
    "rope": rope,
    "adam": adam,
    "multi tensor": multi_tensor,
    "padding": padding,
    "master weights": master_weights,
    "mxfp8 master weights": mxfp8_master_weights,
    "delayed scales": delayed_scales,
}


def measured(names: Iterable[str]) -> dict[str, float]:
    """The fraction of its tolerance that each check uses."""
    return {name: seeded(name) for name in names}


def seeded(name: str) -> float:
    """One check, always on the same numbers."""
    torch.manual_seed(3)
    return CHECKS[name]()

"""Faults that are planted in each family, and the check that has to notice. Free of any import of
Transformer Engine, so that the tests' own process can read the table.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

EXTENSION = "vila_mc.emulation.extension"


@dataclass(frozen=True)
class Fault:
    """A part of the emulation that is replaced."""

    target: str
    """``module:attribute`` below the extension, or the name of one of its functions."""
    plant: Callable[[Any], Any]
    """From the original to what stands in its place."""
    check: str
    """Of ``checks.CHECKS``."""


def _times(factor: float) -> Callable[[Any], Any]:
    """A function whose result, or the first of whose results, is off by a factor."""

    def plant(original: Any) -> Any:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if isinstance(result, (list, tuple)):
                return type(result)([result[0] * factor, *result[1:]])
            return result * factor

        return faulty

    return plant


def _second_times(factor: float) -> Callable[[Any], Any]:
    """The same for the second result, where there is one."""

    def plant(original: Any) -> Any:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            first, second, *rest = original(*args, **kwargs)
            return [first, None if second is None else second * factor, *rest]

        return faulty

    return plant


def _with(**changed: Any) -> Callable[[Any], Any]:
    """A function that is given other arguments than the caller's."""

    def plant(original: Any) -> Any:
        return lambda *args, **kwargs: original(*args, **{**kwargs, **changed})

    return plant


def _argument(position: int, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same for one given by position."""

    def plant(original: Any) -> Any:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            changed = [*args[:position], change(args[position]), *args[position + 1 :]]
            return original(*changed, **kwargs)

        return faulty

    return plant


def _nothing(original: Any) -> Any:
    return lambda *args, **kwargs: None


def _is(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


def _unsaturated(original: Any) -> Any:
    kinds = {7: torch.float8_e4m3fn, 8: torch.float8_e5m2}
    return lambda scaled, dtype: (scaled * 1.2).to(kinds[int(dtype)]).view(torch.uint8)


def _without_subnormals(original: Any) -> Any:
    def faulty(scaled: torch.Tensor, dtype: Any) -> Any:
        return original(torch.where(scaled.abs() < 2**-6, 0.0, scaled), dtype)

    return faulty


def _plus(change: int) -> Callable[[Any], Any]:
    return lambda original: lambda values: original(values) + change


def _other_copy(original: Any) -> Any:
    return lambda tensor, rowwise: original(tensor, rowwise=not rowwise)


def _rolled(tensor: Any) -> Any:
    return tensor.roll(1)


def _last_row(tensor: Any) -> Any:
    changed = tensor.clone()
    changed[-1] = 0
    return changed


FAULTS: dict[str, Fault] = {
    # products
    "product off": Fault("generic_gemm", _times(1.01), "linear"),
    "bias gradient off": Fault("generic_gemm", _second_times(1.01), "linear"),
    "no accumulation": Fault("generic_gemm", _argument(14, lambda _: False), "accumulation"),
    "another gelu after a product": Fault("gemm:gelu_of", _is(torch.relu), "gelu of a product"),
    "gelu's gradient after a product": Fault(
        "gemm:vector_jacobian", _times(1.01), "gelu of a product"
    ),
    # FP8
    "casts do not saturate": Fault("per_tensor:to_fp8_bytes", _unsaturated, "delayed"),
    "delayed scaling forgets": Fault("per_tensor:_remember", _nothing, "delayed"),
    "range of another FP8": Fault("per_tensor:LARGEST", _is({7: 240.0, 8: 57344.0}), "current"),
    "blocks of 64": Fault("block_scaling:BLOCK", _is(64), "quantizers"),
    "subnormals lost": Fault("per_tensor:to_fp8_bytes", _without_subnormals, "quantizers"),
    "tiny amaxes": Fault("block_scaling:scale_from_amax", _with(for_infinity=1.0), "quantizers"),
    "scales of blocks not a power of two": Fault(
        "block_scaling:scale_from_amax", _with(is_power_of_two=False), "blockwise"
    ),
    "norm rounds before it quantizes": Fault(
        "normalization:is_delayed", _is(lambda quantizer: False), "fused quantization"
    ),
    "history is not rolled": Fault(
        "fused_amax_and_scale_update_after_reduction", _nothing, "delayed scales"
    ),
    "margin forgotten": Fault(
        "fused_amax_and_scale_update_after_reduction", _argument(5, lambda _: 0.0), "delayed scales"
    ),
    "masters cast by no scale": Fault("quantize", _argument(0, lambda x: x / 2), "master weights"),
    "shard cast elsewhere": Fault(
        "fp8_block_scaling_partial_cast", _argument(0, _last_row), "master weights"
    ),
    # norms and activations
    "epsilon of RMSNorm": Fault("rmsnorm_fwd", _argument(2, lambda _: 1e-2), "rms norm"),
    "RMSNorm weight gradient": Fault("rmsnorm_bwd", _second_times(1.01), "rms norm"),
    "LayerNorm input gradient": Fault("layernorm_bwd", _times(1.01), "layer norm"),
    "LayerNorm without bias": Fault("layernorm_fwd", _argument(2, lambda _: None), "layer norm"),
    "gate": Fault("swiglu", _times(1.01), "mlp"),
    "gate's gradient": Fault("dswiglu", _times(1.01), "mlp"),
    "quick gelu": Fault("qgelu", _times(1.01), "activations"),
    "gradient of squared relu": Fault("dsrelu", _times(1.01), "activations"),
    "bias gradient of an activation": Fault("dbias_dgelu", _times(1.01), "activations"),
    # attention
    "causal softmax": Fault(
        "scaled_upper_triang_masked_softmax_forward", _argument(1, lambda x: x * 1.2), "softmax"
    ),
    "aligned causal softmax": Fault(
        "scaled_aligned_causal_masked_softmax_forward", _times(1.05), "softmax"
    ),
    "softmax gradient": Fault("softmax:_backward", _times(1.05), "softmax"),
    "rows that see nothing": Fault("softmax:_MASKED", _is(-1e-3), "softmax"),
    "unmasked softmax": Fault("scaled_softmax_forward", _times(1.05), "attention"),
    "samples see each other": Fault(
        "scaled_masked_softmax_forward", _argument(1, torch.zeros_like), "packed attention"
    ),
    "row lost on the way": Fault(
        "convert_thd_to_bshd", _argument(0, _last_row), "packed attention"
    ),
    "row lost on the way back": Fault("convert_bshd_to_thd", _times(0.9), "packed attention"),
    "rope turned back wrongly": Fault("fused_rope_backward", _times(1.01), "rope"),
    "rope without angles": Fault("fused_rope_forward", _argument(1, lambda x: x * 0.9), "rope"),
    # lists and rows
    "decay not decoupled": Fault("multi_tensor_adam", _argument(8, lambda _: 0), "adam"),
    "no bias correction": Fault("multi_tensor_adam", _argument(9, lambda _: 0), "adam"),
    "norm of a list": Fault("multi_tensor_l2norm", _times(1.01), "multi tensor"),
    "unscaled norm": Fault("multi_tensor_unscale_l2norm", _times(2.0), "multi tensor"),
    "scaled list": Fault("multi_tensor_scale", _argument(3, lambda x: x * 2), "multi tensor"),
    "padding not zero": Fault(
        "fused_multi_row_padding", _argument(3, lambda _: [6, 10]), "padding"
    ),
    "padding not taken away": Fault("fused_multi_row_unpadding", _nothing, "padding"),
}


ON_BLACKWELL: dict[str, Fault] = {
    "powers of two too small": Fault("mxfp8:to_exponents", _plus(-1), "mxfp8 quantizer"),
    "powers of two too large": Fault("mxfp8:to_exponents", _plus(1), "mxfp8 quantizer"),
    "shard cast elsewhere in MXFP8": Fault(
        "mxfp8_scaling_partial_cast", _argument(0, _rolled), "mxfp8 master weights"
    ),
    "copies exchanged": Fault("mxfp8:operand", _other_copy, "mxfp8"),
}


def noticed(names: Iterable[str]) -> dict[str, float]:
    """What the check of each fault says while it is planted, as a fraction of its tolerance."""
    from tests.te.checks import seeded

    found = {}
    for name in names:
        fault = (FAULTS | ON_BLACKWELL)[name]
        namespace, attribute = _place(fault.target)
        original = namespace[attribute]
        namespace[attribute] = fault.plant(original)
        try:
            found[name] = seeded(fault.check)
        except (RuntimeError, IndexError):  # it cannot even be computed
            found[name] = float("inf")
        finally:
            namespace[attribute] = original
    return found


def _place(target: str) -> tuple[dict[str, Any], str]:
    module, is_part, attribute = target.rpartition(":")
    if is_part:
        return vars(importlib.import_module(f"{EXTENSION}.{module}")), attribute
    functions: dict[str, Any] = importlib.import_module("transformer_engine_torch").functions
    return functions, attribute

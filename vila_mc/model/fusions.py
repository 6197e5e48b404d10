"""Which of Megatron-Core's fused operations run, from what this machine has."""

import os
from typing import Literal

import torch

from vila_mc.config.run import RunConfig
from vila_mc.parallel.installed import can_compile, has_apex_weight_gradient

_NAMES = {
    "bias_activation_fusion": "SwiGLU",
    "cross_entropy_loss_fusion": "cross entropy",
    "gradient_accumulation_fusion": "weight gradients",
}
"""What a person calls them."""


def fusion_options(config: RunConfig, part: Literal["vision", "language"]) -> dict[str, bool]:
    """Options of Megatron-Core's TransformerConfig for a part; the fusions left out stay off.

    All ranks of a run must agree: a fused cross entropy makes one collective of two.
    """
    # Megatron-Core has torch compile its SwiGLU and cross entropy, or else they run as they are
    # written; what they keep for the backward pass is the same.
    is_plain = os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    is_runnable = is_plain or (torch.cuda.is_available() and can_compile())
    is_language = part == "language"
    return {
        # The tower's activations are not among those that it fuses.
        "bias_activation_fusion": is_language and is_runnable,
        # It rounds the gradient of the logits to bf16, which is what they are then and not else.
        "cross_entropy_loss_fusion": (
            is_language
            and is_runnable
            and config.train.precision == "bf16"
            and not config.train.deterministic  # Megatron-LM's deterministic mode refuses it
        ),
        "gradient_accumulation_fusion": has_apex_weight_gradient(),
    }


def fusions_line(config: RunConfig) -> str:
    """A few words about what is fused in the language model."""
    options = fusion_options(config, "language")
    return f"fused {', '.join(_NAMES[name] for name, is_on in options.items() if is_on) or 'none'}"

"""FP8 in Megatron-Core's terms, whether this GPU has it, and what the delayed recipe remembers."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from megatron.core.enums import Fp8Recipe
from torch import Tensor, nn

from vila_mc.config.fp8 import Fp8Config, Fp8Part
from vila_mc.config.run import RunConfig
from vila_mc.errors import SetupError

_RECIPES = {
    "delayed": Fp8Recipe.delayed,
    "current": Fp8Recipe.tensorwise,
    "blockwise": Fp8Recipe.blockwise,
    "mxfp8": Fp8Recipe.mxfp8,
}
_NEEDS = {"delayed": (8, 9), "current": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
"""Least compute capability of each recipe, as Transformer Engine 2.20 asks for it."""


def megatron_recipe(fp8: Fp8Config) -> Fp8Recipe | None:
    """What Megatron-Core calls a recipe; None without one."""
    return _RECIPES.get(fp8.recipe)


def fp8_options(config: RunConfig, part: Fp8Part) -> dict[str, Any]:
    """Options of Megatron-Core's TransformerConfig for a part; none where it is not in FP8.

    Its layers must be of Transformer Engine, see ``layer_specs.layer_kind``.

    Raises:
        SetupError: this GPU cannot compute by the recipe.
    """
    fp8 = config.train.fp8
    if not fp8.concerns(part):
        return {}
    _require_capability(fp8.recipe)
    return {
        "fp8": fp8.format,
        "fp8_recipe": _RECIPES[fp8.recipe],
        "fp8_margin": fp8.margin,
        "fp8_amax_history_len": fp8.amax_history,
        "fp8_amax_compute_algo": fp8.amax_algorithm,
        "first_last_layers_bf16": fp8.first_layers_bf16 + fp8.last_layers_bf16 > 0,
        "num_layers_at_start_in_bf16": fp8.first_layers_bf16,
        "num_layers_at_end_in_bf16": fp8.last_layers_bf16,
    }


def _require_capability(recipe: str) -> None:
    # Transformer Engine's own answer, which is that of the GPU it runs on or that is emulated.
    from transformer_engine.pytorch.utils import get_device_compute_capability

    has: tuple[int, int] = get_device_compute_capability()
    needed = _NEEDS[recipe]
    if has >= needed:
        return
    able = [name for name, least in _NEEDS.items() if has >= least]
    choice = f"Choose of {', '.join(able)}, or none" if able else "Set it to none"
    raise SetupError(
        f"train.fp8.recipe is {recipe}, which needs a GPU of compute capability "
        f"{needed[0]}.{needed[1]}, and this one has {has[0]}.{has[1]}. {choice}."
    )


_DIRECTIONS = {"forward": "scaling_fwd", "backward": "scaling_bwd"}


def delayed_scales(module: Any) -> dict[str, Tensor]:
    """What a linear layer remembers for the delayed recipe: its own tensors, to be written into.

    They are made here where no pass has made them yet; empty for any other recipe and module.
    Each holds one column for input, weight and output, or for the gradients of output and input;
    ``amax_history`` has a row for each pass.
    """
    config = getattr(module, "config", None)
    if not hasattr(module, "fp8_meta") or getattr(config, "fp8_recipe", None) != Fp8Recipe.delayed:
        return {}
    if config is None or config.fp8 is None:
        return {}
    if not module.fp8_meta_tensors_initialized:
        from megatron.core.fp8_utils import get_fp8_recipe

        module.fp8_meta["num_gemms"] = 1
        module.init_fp8_meta_tensors(get_fp8_recipe(config))
    return {
        f"{direction}.{name}": getattr(module.fp8_meta[key], name)
        for direction, key in _DIRECTIONS.items()
        for name in ("scale", "amax_history")
    }


@contextlib.contextmanager
def without_a_trace_in_fp8(stages: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever passes are made inside, the delayed recipe forgets their greatest values."""
    scales = [
        tensor
        for stage in stages
        for module in stage.modules()
        for tensor in delayed_scales(module).values()
    ]
    before = [tensor.clone() for tensor in scales]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(scales, before, strict=True):
                tensor.copy_(values)

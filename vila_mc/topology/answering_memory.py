"""Bytes that a rank needs to answer: arithmetic, the same on every machine."""

import math

from vila_mc.config.run import RunConfig
from vila_mc.topology.shapes import stage_parameters
from vila_mc.topology.stage_plan import plan_stages

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def weight_bytes(config: RunConfig) -> int:
    """Of one tensor-parallel rank, without pipeline stages."""
    (plan,) = plan_stages(config.model, config.parallel)
    parameters = stage_parameters(
        config.model, plan, config.lora, splits_connector=config.splits_connector()
    )
    tensor = config.parallel.tensor
    return _width(config) * sum(math.prod(each.local_shape(tensor)) for each in parameters)


def cached_bytes(config: RunConfig) -> int:
    """Of the keys and values of one position, in all layers, on one tensor-parallel rank."""
    language = config.model.language
    groups = language.kv_heads // config.parallel.tensor
    return _width(config) * language.layers * 2 * groups * language.resolved_head_width()


def passing_bytes(config: RunConfig) -> int:
    """About what one position of a prompt needs while a layer reads it: its input and residual, and
    the widest of what tensor-parallel ranks share."""
    language, tensor = config.model.language, config.parallel.tensor
    head = language.resolved_head_width()
    projected = (language.heads + 2 * language.kv_heads) * head // tensor
    return _width(config) * (4 * language.width + max(3 * language.ffn // tensor, 2 * projected))


def _width(config: RunConfig) -> int:
    """Bytes of a number."""
    return _BYTES[config.train.precision]

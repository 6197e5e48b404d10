"""The vision tower: Megatron-Core's CLIPViTModel as a CLIP or a SigLIP."""

from typing import Any

import torch
from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.run import RunConfig
from vila_mc.model.layer_specs import TorchNorm, vision_layer_spec
from vila_mc.model.megatron_config import DTYPES, vision_config


class PatchEmbedding(torch.nn.Module):
    """A convolution that steps from patch to patch, as one product with the patches."""

    def __init__(self, convolution: torch.nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, 3 * patch**2], channels (c, dy, dx) -> [n, e, p]."""
        return F.linear(patches_npc, self.weight.flatten(1), self.bias).transpose(1, 2)


def build_vision_tower(config: RunConfig, groups: ProcessGroupCollection) -> torch.nn.Module:
    """[n, p, 3 * patch**2] normalised patches -> [n, class tokens + p, e] features.

    The patches are those of ``kernels.ops.normalize_patchify``, the features those of the last
    layer built.

    Args:
        config: the whole configuration.
        groups: process groups of this rank.
    """
    vision, family = config.model.vision, config.model.vision.facts()
    assert family.pre_norm != family.patch_bias, "Megatron-Core 0.19.2 has no such tower"
    # Megatron-Core asks for whole patches; the convolution leaves out what does not fill one.
    seen = vision.grid() * vision.patch_size
    layers = vision_config(config)
    tower = CLIPViTModel(
        layers,
        vision_layer_spec(layers, config.lora),
        ln_pre_impl=TorchNorm,
        ln_post_impl=TorchNorm,
        add_class_token=family.class_tokens > 0,
        class_token_len=family.class_tokens,
        patch_dim=vision.patch_size,
        img_h=seen,
        img_w=seen,
        model_subtype="clip" if family.pre_norm else "siglip",
        pg_collection=groups,
    )
    tower.conv1 = PatchEmbedding(tower.conv1)
    tower.ln_post = None  # SigLIP's final norm comes after the last layer, which nobody reads
    if config.train.fp8.concerns("vision"):
        _pad_tokens(tower, config.train.fp8.alignment())
    tower.to(DTYPES[config.train.precision])
    return tower  # type: ignore[no-any-return]


def _pad_tokens(tower: CLIPViTModel, multiple: int) -> None:
    """Give the layers as many tokens as FP8 products need, whatever the number of images.

    What is added are copies of each image's last token, which look at the others and are not looked
    at: no feature or gradient changes, and no scale, for no number is greater than before.
    """
    real = tower.seq_length

    def pad(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_sbe, *others = inputs
        copies = hidden_sbe[-1:].expand(-real % multiple, -1, -1)
        return torch.cat([hidden_sbe, copies]), *others

    def look_at_real_ones(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, *others = inputs
        return query, key[:real], value[:real], *others

    def cut(_: torch.nn.Module, __: tuple[Any, ...], hidden_sbe: Tensor) -> Tensor:
        return hidden_sbe[:real]

    tower.decoder.register_forward_pre_hook(pad)
    tower.decoder.register_forward_hook(cut)
    for layer in tower.decoder.layers:
        layer.self_attention.core_attention.register_forward_pre_hook(look_at_real_ones)

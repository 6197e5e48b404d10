"""The vision tower: Megatron-Core's CLIPViTModel as a CLIP or a SigLIP."""

import torch
from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from vila_mc.config.run import RunConfig
from vila_mc.model.layer_specs import TorchNorm, vision_layer_spec
from vila_mc.model.megatron_config import DTYPES, vision_config


def build_vision_tower(run: RunConfig, groups: ProcessGroupCollection) -> torch.nn.Module:
    """[n, 3, y, x] normalised pixels -> [n, class tokens + p, e] features of the last layer built.

    Args:
        run: the whole configuration.
        groups: process groups of this rank.
    """
    vision = run.model.vision
    # Megatron-Core asks for whole patches; the convolution leaves out what does not fill one.
    seen = vision.grid() * vision.patch_size
    tower = CLIPViTModel(
        vision_config(run),
        vision_layer_spec(),
        ln_pre_impl=TorchNorm,
        ln_post_impl=TorchNorm,
        add_class_token=vision.class_tokens() > 0,
        class_token_len=vision.class_tokens(),
        patch_dim=vision.patch_size,
        img_h=seen,
        img_w=seen,
        model_subtype=vision.family,
        pg_collection=groups,
    )
    tower.ln_post = None  # SigLIP's final norm comes after the last layer, which nobody reads
    tower.to(DTYPES[run.train.precision])
    return tower  # type: ignore[no-any-return]

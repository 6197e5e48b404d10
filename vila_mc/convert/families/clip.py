"""CLIP's vision transformer."""

from vila_mc.convert.families.vision import LAYER_ROWS, PATCHES, HfVision
from vila_mc.convert.transforms import Reshape, affine

CLIP = HfVision(
    name="clip",
    architecture="CLIPVisionModel",
    image_processor="CLIPImageProcessor",
    defaults=dict(image_size=224, patch_size=32),
    rows=(
        Reshape("vision.class_token", "embeddings.class_embedding", "1 1 e", "e"),
        PATCHES,
        # "pre_layrnorm" is how the CLIP of transformers spells it.
        *affine("vision.ln_pre", "pre_layrnorm", "e", "e"),
        *LAYER_ROWS,
    ),
)

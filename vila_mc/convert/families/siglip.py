"""SigLIP's vision transformer."""

from vila_mc.convert.families.vision import LAYER_ROWS, PATCHES, HfVision
from vila_mc.convert.transforms import Rename

SIGLIP = HfVision(
    name="siglip",
    architecture="SiglipVisionModel",
    image_processor="SiglipImageProcessor",
    defaults=dict(image_size=224, patch_size=16),
    rows=(
        PATCHES,
        Rename("vision.conv1.bias", "embeddings.patch_embedding.bias", "e"),
        *LAYER_ROWS,
    ),
    # A head that pools patches, which no feature passes through, is not written.
    switches=dict(vision_use_head=False),
)

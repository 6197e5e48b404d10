"""Position embeddings of a tower for images of another size."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def interpolate_positions(table_pe: Tensor, class_tokens: int, grid: int) -> Tensor:
    """Positions of a square grid of patches, stretched to another; class tokens keep theirs.

    Args:
        table_pe: [class tokens + g * g, e], patches in row-major order.
        class_tokens: rows in front of the patches.
        grid: side of the new grid.

    Returns:
        [class tokens + grid * grid, e] of the same dtype, computed in fp32.

    Source:
        ``interpolate_pos_encoding`` of CLIP and SigLIP in transformers: bicubic, corners not
        aligned.
    """
    patches_pe = table_pe[class_tokens:].float()
    side = math.isqrt(len(patches_pe))
    patches_1egg = patches_pe.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = F.interpolate(patches_1egg, (grid, grid), mode="bicubic", align_corners=False)
    patches_pe = stretched.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([table_pe[:class_tokens], patches_pe.to(table_pe.dtype)])

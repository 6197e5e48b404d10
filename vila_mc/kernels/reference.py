"""The connector's and the splice's tensor operations in plain torch.

Shape letters: b rows, s positions, h LLM width, n images, p patches, e ViT width, q visual tokens
per image, y and x pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.model import CLIP_MEAN, CLIP_STD


def normalize_images(images_n3yx: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 pixels [n, 3, y, x] to CLIP's normalised range in ``dtype``.

    The arithmetic is fp32 whatever ``dtype`` is, so that every precision sees the same pixels.
    """
    device = images_n3yx.device
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)
    return ((images_n3yx.float() / 255.0 - mean) / std).to(dtype)


def merge_neighbours(patches_npe: Tensor, factor: int) -> Tensor:
    """Fold each ``factor x factor`` block of patches into one token.

    An odd grid gets rows and columns of zeros at the bottom and right first.

    Args:
        patches_npe: [n, p, e], p = g * g patches in row-major order.
        factor: side of the block.

    Returns:
        [n, ceil(g / factor)**2, factor**2 * e], tokens row-major, channels ordered (dy, dx, e).

    Raises:
        ValueError: the number of patches is not a square.

    Source:
        VILA, arXiv 2312.07533, section 4 and Table 7; channel order of NVlabs/VILA (main).
    """
    n, p, e = patches_npe.shape
    grid = round(p**0.5)
    if grid * grid != p:
        raise ValueError(f"{p} patches are not a square grid; give [n, g * g, e].")
    side = -(-grid // factor)
    missing = side * factor - grid
    blocks = patches_npe.view(n, grid, grid, e)
    if missing:
        blocks = F.pad(blocks, (0, 0, 0, missing, 0, missing))
    blocks = blocks.view(n, side, factor, side, factor, e).transpose(2, 3)
    return blocks.reshape(n, side * side, factor * factor * e)


def splice_visual(text_sbh: Tensor, visual_nqh: Tensor, image_starts: Tensor) -> Tensor:
    """Put each image's visual tokens at its positions among the text embeddings.

    Args:
        text_sbh: [s, b, h] embeddings of the whole sequence; what stands at image positions is
            overwritten and gets no gradient.
        visual_nqh: [n, q, h].
        image_starts: [n, 2] int64, row and first position of each image.

    Returns:
        [s, b, h].

    Raises:
        ValueError: the two sides disagree about the number of images.
    """
    n, q, h = visual_nqh.shape
    if image_starts.shape[0] != n:
        raise ValueError(
            f"the text has places for {image_starts.shape[0]} images; vision gave {n} x {q} "
            "tokens. The dataset and the model disagree; build the batch with this model's config."
        )
    s, b, _ = text_sbh.shape
    rows, starts = image_starts[:, :1], image_starts[:, 1:]
    positions = starts + torch.arange(q, device=image_starts.device)
    flat_index = (positions * b + rows).flatten()  # [s, b] is flattened position-major
    spliced = text_sbh.reshape(s * b, h).index_copy(
        0, flat_index, visual_nqh.reshape(n * q, h).to(text_sbh.dtype)
    )
    return spliced.view(s, b, h)

"""The connector's and the splice's tensor operations in plain torch: the twins of csrc/.

They define what the native operations compute, and do the work where those are not built. torch
differentiates them; the twins of backward operations are written out, as oracles for kernels.

Shape letters: b rows, s positions, h LLM width, n images, p patches, g patches along a side, e ViT
width, f side of a block of patches, t = ceil(g / f)**2 tokens, q visual tokens per image, y and
x pixels.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.config.families import CLIP


def normalize_images(
    images_n3yx: Tensor,
    dtype: torch.dtype,
    mean: Sequence[float] = CLIP.channel_mean,
    std: Sequence[float] = CLIP.channel_std,
) -> Tensor:
    """uint8 pixels [n, 3, y, x] to the tower's range in ``dtype``.

    The arithmetic is fp32 whatever ``dtype`` is, so that every precision sees the same pixels.

    Args:
        images_n3yx: the pixels.
        dtype: number format of the result.
        mean: what each channel, on a scale of 0 to 1, is shifted by.
        std: what each shifted channel is divided by.
    """
    shift = torch.tensor(mean, device=images_n3yx.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images_n3yx.device).view(1, 3, 1, 1)
    return ((images_n3yx.float() / 255.0 - shift) / scale).to(dtype)


@cache
def normalization_table(
    dtype: torch.dtype,
    device: torch.device,
    mean: tuple[float, float, float] = CLIP.channel_mean,
    std: tuple[float, float, float] = CLIP.channel_std,
) -> Tensor:
    """[3, 256]: what ``normalize_images`` makes of every level of every channel."""
    levels = torch.arange(256, dtype=torch.uint8, device=device)
    return normalize_images(levels.expand(1, 3, 1, 256), dtype, mean, std).reshape(3, 256)


def normalize_patchify(images_n3yx: Tensor, table: Tensor, patch: int) -> Tensor:
    """Normalised patches of uint8 images, each a row.

    Args:
        images_n3yx: [n, 3, y, x] uint8.
        table: [3, 256], the value of every level of every channel.
        patch: side of a patch in pixels. What fills no patch, at the right and bottom, is left out.

    Returns:
        [n, (y // patch) * (x // patch), 3 * patch**2] in the table's dtype, patches row-major,
        channels ordered (c, dy, dx): a convolution with stride = kernel = patch is a product of
        its flattened weight with these rows.
    """
    n, _, y, x = images_n3yx.shape
    rows, columns = y // patch, x // patch
    seen = images_n3yx[:, :, : rows * patch, : columns * patch].int()
    normal = torch.stack([table[channel][seen[:, channel]] for channel in range(3)], 1)
    tiles = normal.view(n, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(n, rows * columns, 3 * patch * patch)


def downsample_gather(features_npe: Tensor, factor: int, has_cls: bool) -> Tensor:
    """Fold each ``factor x factor`` block of patches into one token.

    An odd grid gets rows and columns of zeros at the bottom and right first.

    Args:
        features_npe: [n, cls + g * g, e], patches in row-major order.
        factor: side of the block.
        has_cls: whether a class token comes first; it is dropped.

    Returns:
        [n, t, factor**2 * e], tokens row-major, channels ordered (dy, dx, e).

    Source:
        VILA, arXiv 2312.07533, section 4 and Table 7; channel order of NVlabs/VILA (main).
    """
    n, p, e = features_npe.shape
    grid = round((p - int(has_cls)) ** 0.5)
    side = -(-grid // factor)
    missing = side * factor - grid
    blocks = features_npe[:, int(has_cls) :].reshape(n, grid, grid, e)
    if missing:
        blocks = F.pad(blocks, (0, 0, 0, missing, 0, missing))
    blocks = blocks.view(n, side, factor, side, factor, e).transpose(2, 3)
    return blocks.reshape(n, side * side, factor * factor * e)


def downsample_gather_backward(grad_ntc: Tensor, grid: int, factor: int, has_cls: bool) -> Tensor:
    """Gradient of ``downsample_gather``'s features [n, cls + grid**2, e]; zeros for the CLS."""
    n, tokens, channels = grad_ntc.shape
    side, e = round(tokens**0.5), channels // factor**2
    blocks = grad_ntc.view(n, side, side, factor, factor, e).transpose(2, 3)
    patches = blocks.reshape(n, side * factor, side * factor, e)[:, :grid, :grid]
    return F.pad(patches.reshape(n, grid * grid, e), (0, 0, int(has_cls), 0))


def downsample_layernorm(
    features_npe: Tensor, weight: Tensor, bias: Tensor, factor: int, has_cls: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``downsample_gather``, then LayerNorm over a token's f * f * e channels.

    Args:
        features_npe: as for ``downsample_gather``.
        weight: [f * f * e], the norm's scale.
        bias: [f * f * e], the norm's shift.
        factor: side of the block.
        has_cls: whether a class token comes first; it is dropped.
        eps: added to the variance.

    Returns:
        out [n, t, f * f * e] in the features' dtype; mean and 1 / standard deviation [n, t] in
        fp32 (fp64 for fp64 features), like the arithmetic.
    """
    tokens = _wide(downsample_gather(features_npe, factor, has_cls))
    mean = tokens.mean(-1)
    centred = tokens - mean.unsqueeze(-1)
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    normal = centred * rstd.unsqueeze(-1)
    return (normal * weight + bias).to(features_npe.dtype), mean, rstd


def downsample_layernorm_backward(
    grad_ntc: Tensor,
    features_npe: Tensor,
    weight: Tensor,
    mean_nt: Tensor,
    rstd_nt: Tensor,
    factor: int,
    has_cls: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``downsample_layernorm``'s features, weight and bias, from its statistics."""
    rstd = rstd_nt.unsqueeze(-1)
    tokens = _wide(downsample_gather(features_npe, factor, has_cls))
    normal = (tokens - mean_nt.unsqueeze(-1)) * rstd
    grad = _wide(grad_ntc)
    weight_grad = (grad * normal).sum((0, 1)).to(weight.dtype)
    bias_grad = grad.sum((0, 1)).to(weight.dtype)
    grad = grad * weight
    along_normal = (grad * normal).mean(-1, keepdim=True)
    grad = (grad - grad.mean(-1, keepdim=True) - normal * along_normal) * rstd
    grid = round((features_npe.shape[1] - int(has_cls)) ** 0.5)
    features_grad = downsample_gather_backward(grad, grid, factor, has_cls)
    return features_grad.to(features_npe.dtype), weight_grad, bias_grad


def downsample_linear(
    features_npe: Tensor, weight: Tensor, bias: Tensor | None, factor: int, has_cls: bool
) -> Tensor:
    """``downsample_gather``, then a linear layer: [n, t, h]. The paper's concat projector."""
    return F.linear(downsample_gather(features_npe, factor, has_cls), weight, bias)


def mlp_downsample(
    features_npe: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    factor: int,
    has_cls: bool,
    eps: float,
) -> Tensor:
    """Gather, LayerNorm, linear, exact GELU, linear: [n, t, h]. The connector of VILA-1.5.

    It is the chain that a model without this package would write; torch keeps every step of it.
    """
    tokens = downsample_gather(features_npe, factor, has_cls)
    tokens = F.layer_norm(tokens, norm_weight.shape, norm_weight, norm_bias, eps)
    return F.linear(F.gelu(F.linear(tokens, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def splice_visual(
    text: Tensor,
    visual_nqh: Tensor,
    image_starts: Tensor,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    """Put each image's visual tokens at its positions among the text embeddings.

    Args:
        text: [b, s, h], or [s, b, h] if ``sequence_first``; the whole sequence or a shard of it.
            What stands at image positions is overwritten and gets no gradient.
        visual_nqh: [n, q, h].
        image_starts: [n, 2] int64, row and first position of each image in the whole sequence.
        sequence_first: whether positions come before rows.
        first_position: where in the whole sequence a shard begins; tokens outside it are skipped.
        sequence_length: positions of the whole sequence.

    Returns:
        like ``text``.
    """
    q = visual_nqh.shape[1]
    places = _VisualPlaces(text.shape, image_starts, q, sequence_first)
    tokens = visual_nqh.flatten(0, 1)
    rows, index = text.flatten(0, 1), places.flat_index(first_position)
    if text.shape[places.axis] == sequence_length:
        return rows.index_copy(0, index, tokens).view(text.shape)
    # What lies outside goes to a row of its own: shapes must not depend on where images stand.
    index = index.where(places.inside(first_position), len(rows))
    spare = F.pad(rows, (0, 0, 0, 1))
    return spare.index_copy(0, index, tokens)[:-1].view(text.shape)


def splice_visual_text_grad(
    grad: Tensor,
    image_starts: Tensor,
    num_visual: int,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    """Gradient of ``splice_visual``'s text: ``grad``, with zeros where visual tokens stand."""
    n, h = image_starts.shape[0], grad.shape[-1]
    zeros = grad.new_zeros((n, num_visual, h))
    return splice_visual(grad, zeros, image_starts, sequence_first, first_position, sequence_length)


def splice_visual_visual_grad(
    grad: Tensor,
    image_starts: Tensor,
    num_visual: int,
    sequence_first: bool,
    first_position: int,
    sequence_length: int,
) -> Tensor:
    """Gradient of ``splice_visual``'s visual tokens [n, num_visual, h]: zeros outside a shard."""
    places = _VisualPlaces(grad.shape, image_starts, num_visual, sequence_first)
    rows, index = grad.flatten(0, 1), places.flat_index(first_position)
    if grad.shape[places.axis] != sequence_length:
        index = index.where(places.inside(first_position), len(rows))
        rows = F.pad(rows, (0, 0, 0, 1))
    tokens = rows.index_select(0, index)
    return tokens.view(image_starts.shape[0], num_visual, grad.shape[-1])


class _VisualPlaces:
    """Where visual tokens stand in the flattened positions and rows of text embeddings."""

    def __init__(
        self, shape: torch.Size, image_starts: Tensor, num_visual: int, sequence_first: bool
    ) -> None:
        self.axis = 0 if sequence_first else 1
        self.shape = shape
        steps = torch.arange(num_visual, device=image_starts.device)
        self.rows = image_starts[:, :1]
        self.positions = image_starts[:, 1:] + steps

    def flat_index(self, first_position: int) -> Tensor:
        """[n * q]: index of each token's row; meaningless where it is not ``inside``."""
        positions = self.positions - first_position
        if self.axis == 0:
            return (positions * self.shape[1] + self.rows).flatten()
        return (self.rows * self.shape[1] + positions).flatten()

    def inside(self, first_position: int) -> Tensor:
        """[n * q] bool: whether each token lies in the shard."""
        positions = self.positions - first_position
        return ((positions >= 0) & (positions < self.shape[self.axis])).flatten()


def _wide(tensor: Tensor) -> Tensor:
    """fp32 for statistics, or fp64 where the tensor is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

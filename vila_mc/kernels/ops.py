"""The face of csrc/: every operation, checked, on native code where it is built, else on torch.

This is the one place that chooses. Shape letters as in ``reference``. All but
uint8 pixels are differentiable.
"""

from typing import Any

import torch
from torch import Tensor

from vila_mc.config.families import CLIP
from vila_mc.kernels import native, reference
from vila_mc.kernels.projector import DownsampleLinear, MlpDownsample

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _implementation(tensor: Tensor) -> Any:
    """What computes on the tensor's device: the native operations or their twins in torch."""
    return torch.ops.vila_mc if tensor.device.type in native.loaded() else reference


def normalize_patchify(
    images_n3yx: Tensor,
    patch: int,
    dtype: torch.dtype,
    mean: tuple[float, float, float] = CLIP.channel_mean,
    std: tuple[float, float, float] = CLIP.channel_std,
) -> Tensor:
    """uint8 images -> normalised patches in ``dtype``, ready for a patch embedding's product.

    Args:
        images_n3yx: [n, 3, y, x] uint8.
        patch: side of a patch in pixels. What fills no patch, at the right and bottom, is left out.
        dtype: number format of the result.
        mean: what each channel, on a scale of 0 to 1, is shifted by.
        std: what each shifted channel is divided by.

    Returns:
        [n, p, 3 * patch**2], channels ordered (c, dy, dx).

    Raises:
        ValueError: another shape or number format, or an image smaller than a patch.
    """
    if images_n3yx.ndim != 4 or images_n3yx.shape[1] != 3 or images_n3yx.dtype != torch.uint8:
        raise ValueError(f"images are {_said(images_n3yx)}; give uint8 [n, 3, y, x].")
    y, x = images_n3yx.shape[2:]
    if not 1 <= patch <= min(y, x):
        raise ValueError(f"images of {y} x {x} pixels hold no patch of {patch} pixels.")
    table = reference.normalization_table(dtype, images_n3yx.device, mean, std)
    patches: Tensor = _implementation(images_n3yx).normalize_patchify(images_n3yx, table, patch)
    return patches


def downsample_gather(features_npe: Tensor, factor: int, *, has_cls: bool = False) -> Tensor:
    """Fold each ``factor x factor`` block of patches into one token: [n, t, factor**2 * e].

    Raises:
        ValueError: the features are no square grid of patches.
    """
    _check_features(features_npe, factor, has_cls)
    return _implementation(features_npe).downsample_gather(features_npe, factor, has_cls)  # type: ignore[no-any-return]


def downsample_layernorm(
    features_npe: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: int,
    *,
    has_cls: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """``downsample_gather``, then LayerNorm over the f * f * e channels of a token.

    Raises:
        ValueError: the features are no square grid of patches, or the norm has another width.
    """
    _check_features(features_npe, factor, has_cls)
    _check_norm(features_npe, weight, bias, factor)
    out: Tensor = _implementation(features_npe).downsample_layernorm(
        features_npe, weight, bias, factor, has_cls, eps
    )[0]
    return out


def downsample_linear(
    features_npe: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: int,
    *,
    has_cls: bool = False,
) -> Tensor:
    """``downsample_gather``, then a linear layer: [n, t, h]. Keeps the features alone.

    Raises:
        ValueError: the features are no square grid of patches, or the weight has another width.
    """
    _check_features(features_npe, factor, has_cls)
    _check_linear("the weight", weight, bias, features_npe.shape[2] * factor**2)
    ops = _implementation(features_npe)
    return DownsampleLinear.apply(ops, features_npe, weight, bias, factor, has_cls)  # type: ignore[no-any-return]


def mlp_downsample(
    features_npe: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    factor: int,
    *,
    has_cls: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Gather, LayerNorm, linear, exact GELU, linear: [n, t, h]. Keeps features and statistics.

    Split over tensor-parallel ranks, give each its rows of ``fc1`` (weight and bias), its columns
    of ``fc2_weight``, and ``fc2_bias`` to one of them: the ranks' outputs then sum to the whole,
    and so do their gradients of the features and of the norm.

    Raises:
        ValueError: the features are no square grid of patches, or a weight has another width.
    """
    _check_features(features_npe, factor, has_cls)
    _check_norm(features_npe, norm_weight, norm_bias, factor)
    _check_linear("fc1's weight", fc1_weight, fc1_bias, features_npe.shape[2] * factor**2)
    _check_linear("fc2's weight", fc2_weight, fc2_bias, fc1_weight.shape[0])
    return MlpDownsample.apply(  # type: ignore[no-any-return]
        _implementation(features_npe),
        features_npe,
        norm_weight,
        norm_bias,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        factor,
        has_cls,
        eps,
    )


def splice_visual(
    text: Tensor,
    visual_nqh: Tensor,
    image_starts: Tensor,
    *,
    sequence_first: bool = True,
    first_position: int = 0,
    sequence_length: int | None = None,
) -> Tensor:
    """Put each image's visual tokens at its positions among the text embeddings.

    Args:
        text: [s, b, h], or [b, s, h] without ``sequence_first``; or a shard of its positions.
        visual_nqh: [n, q, h].
        image_starts: [n, 2] int64, row and first position of each image in the whole sequence.
        sequence_first: whether positions come before rows.
        first_position: where a shard begins.
        sequence_length: positions of the whole sequence if ``text`` is a shard.

    Returns:
        like ``text``. What stood at image positions gets no gradient; the visual tokens get that
        of the positions in the shard.

    Raises:
        ValueError: the sides disagree about the number of images, or in shape.
    """
    if text.ndim != 3 or visual_nqh.ndim != 3 or text.shape[2] != visual_nqh.shape[2]:
        raise ValueError(
            f"text is {_said(text)} and vision {_said(visual_nqh)}; give [s, b, h] and [n, q, h]."
        )
    if image_starts.dtype != torch.int64 or image_starts.shape[1:] != (2,):
        raise ValueError(f"image_starts are {_said(image_starts)}; give int64 [n, 2].")
    n, q, _ = visual_nqh.shape
    if image_starts.shape[0] != n:
        raise ValueError(
            f"the text has places for {image_starts.shape[0]} images; vision gave {n} x {q} "
            "tokens. The dataset and the model disagree; build the batch with this model's config."
        )
    whole = text.shape[0 if sequence_first else 1] if sequence_length is None else sequence_length
    return _implementation(text).splice_visual(  # type: ignore[no-any-return]
        text, visual_nqh.to(text.dtype), image_starts, sequence_first, first_position, whole
    )


def _check_features(features_npe: Tensor, factor: int, has_cls: bool) -> None:
    if features_npe.ndim != 3 or features_npe.dtype not in FLOATS:
        raise ValueError(
            f"features are {_said(features_npe)}; give [n, cls + g * g, e] in fp32, bf16, fp16 "
            "or fp64."
        )
    patches = features_npe.shape[1] - has_cls
    if patches < 1 or round(patches**0.5) ** 2 != patches:
        raise ValueError(f"{patches} patches are not a square grid; give [n, cls + g * g, e].")
    if factor < 1:
        raise ValueError(f"a block of {factor} x {factor} patches is not possible; give 1 or more.")


def _check_norm(features_npe: Tensor, weight: Tensor, bias: Tensor, factor: int) -> None:
    allowed = (features_npe.shape[2] * factor**2,)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != allowed or tensor.dtype != features_npe.dtype:
            raise ValueError(
                f"the norm's {name} is {_said(tensor)}; {_said(features_npe)} features in blocks "
                f"of {factor} x {factor} need {features_npe.dtype} {list(allowed)}."
            )


def _check_linear(name: str, weight: Tensor, bias: Tensor | None, width: int) -> None:
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{name} is {_said(weight)}; it meets {width} channels: give [h, {width}]."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"the bias is {_said(bias)}, {name} {_said(weight)}; give [h] and [h, c].")


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

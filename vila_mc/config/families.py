"""What tells model families apart: one frozen value each, and nowhere else in the package.

A family is added here and in ``convert/families/``, one line in the registry of each.
"""

from dataclasses import dataclass
from typing import Literal

ImageMode = Literal["crop", "pad", "resize", "tiles"]
Activation = Literal["quick_gelu", "gelu_pytorch_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageFamily:
    """A Llama-like decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention."""

    name: str
    """As ``model.language.family`` has it, which is also Hugging Face's ``model_type``."""
    title: str
    """Its name for people."""
    qkv_bias: bool = False
    """Whether query, key and value projections have biases."""
    qk_norm: bool = False
    """Whether every head's queries and keys pass an RMSNorm, one for all heads, before rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFamily:
    """A vision transformer."""

    name: str
    """As ``model.vision.family`` has it."""
    title: str
    """Its name for people."""
    class_tokens: int
    """Tokens in front of the patches."""
    pre_norm: bool
    """Whether a norm stands before the first layer."""
    patch_bias: bool
    """Whether the patch embedding has a bias."""
    partial_patches: bool
    """Whether pixels may be left over at the right and bottom that fill no patch."""
    activation: Activation
    """Activation of the feed-forward layers, by its Hugging Face name."""
    norm_epsilon: float
    """Added to the variance in its norms."""
    channel_mean: tuple[float, float, float]
    """What each colour channel, on a scale of 0 to 1, is shifted by."""
    channel_std: tuple[float, float, float]
    """What each shifted colour channel is divided by."""
    image_mode: ImageMode
    """How its makers make an image square."""


LANGUAGE_FAMILIES: dict[str, LanguageFamily] = {
    family.name: family
    for family in (
        LanguageFamily(name="llama", title="Llama"),
        LanguageFamily(name="mistral", title="Mistral"),
        LanguageFamily(name="qwen2", title="Qwen2", qkv_bias=True),
        LanguageFamily(name="qwen3", title="Qwen3", qk_norm=True),
    )
}

CLIP = VisionFamily(
    name="clip",
    title="CLIP",
    class_tokens=1,
    pre_norm=True,
    patch_bias=False,
    partial_patches=False,
    activation="quick_gelu",
    norm_epsilon=1e-5,
    # Of its training images (arXiv 2103.00020, released preprocessor).
    channel_mean=(0.48145466, 0.4578275, 0.40821073),
    channel_std=(0.26862954, 0.26130258, 0.27577711),
    image_mode="crop",
)
SIGLIP = VisionFamily(
    name="siglip",
    title="SigLIP",
    class_tokens=0,
    pre_norm=False,
    patch_bias=True,
    partial_patches=True,
    activation="gelu_pytorch_tanh",
    norm_epsilon=1e-6,
    # arXiv 2303.15343, released preprocessor.
    channel_mean=(0.5, 0.5, 0.5),
    channel_std=(0.5, 0.5, 0.5),
    image_mode="resize",
)
VISION_FAMILIES: dict[str, VisionFamily] = {family.name: family for family in (CLIP, SIGLIP)}

"""The shape of a VILA: vision tower, connector, language model."""

from dataclasses import dataclass
from typing import Any, Literal

from vila_mc.config.checks import STRICT, require, require_known, require_positive
from vila_mc.config.connector_memory import Site
from vila_mc.config.connectors import ConnectorConfig, ConnectorLayer, Tower
from vila_mc.config.families import (
    LANGUAGE_FAMILIES,
    VISION_FAMILIES,
    ImageMode,
    LanguageFamily,
    VisionFamily,
)

RopeScaling = Literal["none", "linear", "llama3"]

VOCAB_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this, whatever the layout, so that tables have one
shape and any tensor-parallel size that divides it can share them."""

DEFAULT_MAX_TILES = 12
"""As InternVL 1.5 and NVILA were trained with."""
_MOST_TILES = 100
"""Nobody uses more than 40, and every image would take a hundred thousand positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A vision transformer, read after one of its last layers."""

    __pydantic_config__ = STRICT

    family: str = "clip"
    """clip (arXiv 2103.00020): class token, norm before the layers, quick GELU, epsilon 1e-5.
    siglip (arXiv 2303.15343): neither of the first two, tanh GELU, epsilon 1e-6, a bias in the
    patch embedding, other channel statistics."""
    image_size: int = 336
    """Side of the square input image, in pixels; the default is CLIP ViT-L/14's at 336."""
    patch_size: int = 14
    """Side of a square patch, in pixels; the default is CLIP ViT-L/14's."""
    width: int = 1024
    """Width of the transformer (e); the default is CLIP ViT-L's."""
    layers: int = 24
    """Layers of the checkpoint, of which those above select_layer are not built; the default is
    CLIP ViT-L's."""
    select_layer: int = -2
    """Layer whose output the features are, counted from the end as Hugging Face does: -1 is the
    last, before the norm behind it; -2 the last but one, as in VILA and LLaVA-1.5."""
    heads: int = 16
    """Attention heads; the default is CLIP ViT-L's."""
    ffn: int = 4096
    """Width of the feed-forward layer; the default is CLIP ViT-L's."""
    image_mode: ImageMode = "crop"
    """How an image becomes square: crop (short side to size, centre crop), pad (square canvas,
    image centred), resize (direct). tiles: it is cut into several squares, as InternVL does."""
    max_tiles: int = DEFAULT_MAX_TILES
    """tiles: squares that an image is cut into at most, the thumbnail not counted."""
    thumbnail: bool = True
    """tiles: whether the whole image follows as one more square, where it is more than one."""
    tile_newline: int | None = None
    """tiles: token id that stands behind every square, as NVILA's newline (of Llama 2's tokenizer
    13, of Qwen2's 198); none puts nothing there."""
    channel_mean: tuple[float, float, float] | None = None
    """What each colour channel, on a scale of 0 to 1, is shifted by; as its family does if none."""
    channel_std: tuple[float, float, float] | None = None
    """What each shifted colour channel is divided by; as its family does if none."""

    def __post_init__(self) -> None:
        require_known("model.vision.family", self.family, VISION_FAMILIES)
        require_positive(
            "model.vision",
            layers=self.layers,
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            heads=self.heads,
            ffn=self.ffn,
        )
        require(
            self.select_layer < 0,
            f"model.vision.select_layer is {self.select_layer}; it counts from the end: -1 is the "
            "last layer, -2 the last but one.",
        )
        require(
            self.built_layers() > 0,
            f"model.vision.layers is {self.layers}; features come from layer {self.select_layer} "
            f"(model.vision.select_layer), so at least {-self.select_layer} are needed.",
        )
        require(
            self.facts().partial_patches or self.image_size % self.patch_size == 0,
            f"model.vision.image_size {self.image_size} is not a multiple of "
            f"model.vision.patch_size {self.patch_size}. Change one of them.",
        )
        require(
            self.image_size >= self.patch_size,
            f"model.vision.image_size {self.image_size} is less than model.vision.patch_size "
            f"{self.patch_size}. Change one of them.",
        )
        require(
            min(self.resolved_channel_std()) > 0,
            f"model.vision.channel_std is {self.channel_std}; each must be greater than 0.",
        )
        self._check_tiles()
        require(
            self.width % self.heads == 0,
            f"model.vision.width {self.width} is not a multiple of model.vision.heads "
            f"{self.heads}. Change one of them.",
        )

    def facts(self) -> VisionFamily:
        """What its family decides."""
        return VISION_FAMILIES[self.family]

    def resolved_channel_mean(self) -> tuple[float, float, float]:
        """What each colour channel, on a scale of 0 to 1, is shifted by."""
        return self.channel_mean or self.facts().channel_mean

    def mean_colour(self) -> tuple[int, int, int]:
        """The channel mean as a colour, near 0 once normalised. It fills what ``pad`` adds, as in
        LLaVA's and VILA's public code, and stands in for an image that is lost."""
        red, green, blue = (int(255 * mean) for mean in self.resolved_channel_mean())
        return red, green, blue

    def resolved_channel_std(self) -> tuple[float, float, float]:
        """What each shifted colour channel is divided by."""
        return self.channel_std or self.facts().channel_std

    def grid(self) -> int:
        """Patches along one side (g). What SigLIP's patches leave over (384 = 27 x 14 + 6) lies
        at the right and bottom and is not seen."""
        return self.image_size // self.patch_size

    def most_tiles(self) -> int:
        """Squares that one image becomes at most."""
        if self.image_mode != "tiles":
            return 1
        return self.max_tiles + (self.thumbnail and self.max_tiles > 1)

    def images_become(self) -> str:
        """What becomes of an image, in words."""
        if self.image_mode != "tiles":
            return f"made square by {self.image_mode}"
        thumbnail = " and a thumbnail" if self.thumbnail else ""
        newline = "" if self.tile_newline is None else f", token {self.tile_newline} behind each"
        return f"cut into at most {self.max_tiles} tiles{thumbnail}{newline}"

    def positions(self) -> int:
        """Tokens that pass through the tower for one square: class tokens, then patches."""
        return self.facts().class_tokens + self.grid() ** 2

    def as_connectors_see_it(self) -> Tower:
        """What of it decides the options of a connector that are not given."""
        return Tower(self.built_layers(), self.width, self.heads, self.grid())

    def built_layers(self) -> int:
        """Layers that run: everything up to ``select_layer``."""
        return self.layers + 1 + self.select_layer

    def _check_tiles(self) -> None:
        require(
            1 <= self.max_tiles <= _MOST_TILES,
            f"model.vision.max_tiles is {self.max_tiles}; it must be 1 to {_MOST_TILES}.",
        )
        given = {
            "max_tiles": self.max_tiles != DEFAULT_MAX_TILES,
            "thumbnail": not self.thumbnail,
            "tile_newline": self.tile_newline is not None,
        }
        for name, is_given in given.items():
            require(
                self.image_mode == "tiles" or not is_given,
                f"model.vision.{name} is set, but model.vision.image_mode is {self.image_mode}. "
                "Set the mode to tiles, or leave it out.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How rotary positions are stretched beyond the length a model was first trained at."""

    __pydantic_config__ = STRICT

    scaling: RopeScaling = "none"
    """none; linear: every frequency divided by factor; llama3: only long waves, as Llama 3.1."""
    factor: float = 1.0
    """How much longer sequences become."""
    low_frequency_factor: float = 1.0
    """llama3: waves longer than original_positions / this are divided by factor."""
    high_frequency_factor: float = 4.0
    """llama3: waves shorter than original_positions / this stay; those between are mixed."""
    original_positions: int = 8192
    """llama3: length that the model was first trained at."""

    def __post_init__(self) -> None:
        require_positive(
            "model.language.rope",
            factor=self.factor,
            low_frequency_factor=self.low_frequency_factor,
            original_positions=self.original_positions,
        )
        require(
            self.scaling != "none" or self.factor == 1.0,
            f"model.language.rope.factor is {self.factor} but model.language.rope.scaling is none. "
            "Set the scaling, or leave the factor at 1.",
        )
        require(
            self.high_frequency_factor > self.low_frequency_factor,
            f"model.language.rope.high_frequency_factor {self.high_frequency_factor} is not "
            f"greater than low_frequency_factor {self.low_frequency_factor}. Change one of them.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig:
    """A Llama-like decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention."""

    __pydantic_config__ = STRICT

    family: str = "llama"
    """llama (also Vicuna) and mistral compute alike; qwen2 adds biases to query, key, value; qwen3
    normalises every head's queries and keys."""
    layers: int = 32
    """Transformer layers; the default is Llama-2-7B's."""
    width: int = 4096
    """Hidden width (h); the default is Llama-2-7B's."""
    ffn: int = 11008
    """Width of the gated feed-forward layer; the default is Llama-2-7B's."""
    heads: int = 32
    """Query heads; the default is Llama-2-7B's."""
    kv_heads: int = 32
    """Key/value heads shared by groups of query heads; the default is Llama-2-7B's."""
    head_width: int | None = None
    """Width of one head (d); width / heads if none."""
    vocab_size: int = 32000
    """Tokens of the tokenizer, which may have fewer; the tables have a few more rows, see
    padded_vocab. The default is Llama 2's."""
    max_positions: int = 4096
    """Longest sequence the rotary positions are meant for; the default is Llama 2's."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope: RopeConfig = RopeConfig()
    """Stretching of the rotary positions."""
    tied_embeddings: bool = False
    """Whether the output layer uses the embedding's table instead of one of its own."""
    norm_epsilon: float = 1e-5
    """Added to the variance in RMSNorm."""

    def __post_init__(self) -> None:
        require_known("model.language.family", self.family, LANGUAGE_FAMILIES)
        require_positive(
            "model.language",
            layers=self.layers,
            width=self.width,
            ffn=self.ffn,
            heads=self.heads,
            kv_heads=self.kv_heads,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            rope_theta=self.rope_theta,
            norm_epsilon=self.norm_epsilon,
        )
        require(
            self.norm_epsilon < 1,
            f"model.language.norm_epsilon is {self.norm_epsilon}; it must be less than 1. "
            "Published models have 1e-5 or 1e-6.",
        )
        require(
            self.head_width is not None or self.width % self.heads == 0,
            f"model.language.width {self.width} is not a multiple of model.language.heads "
            f"{self.heads}. Change one of them, or set model.language.head_width.",
        )
        require(
            self.heads % self.kv_heads == 0,
            f"model.language.heads {self.heads} is not a multiple of model.language.kv_heads "
            f"{self.kv_heads}. Change one of them.",
        )
        head_width = self.resolved_head_width()
        require(
            head_width > 0 and head_width % 2 == 0,
            f"model.language.head_width is {head_width}; rotary positions turn pairs of channels, "
            "so it must be even and greater than 0.",
        )

    def padded_vocab(self) -> int:
        """Rows of the embedding and output tables. Padding rows never enter the softmax."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def resolved_head_width(self) -> int:
        """Width of one head (d)."""
        return self.width // self.heads if self.head_width is None else self.head_width

    def facts(self) -> LanguageFamily:
        """What its family decides."""
        return LANGUAGE_FAMILIES[self.family]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole VILA."""

    __pydantic_config__ = STRICT

    vision: VisionConfig = VisionConfig()
    """The vision tower."""
    connector: ConnectorConfig = ConnectorConfig()
    """Between the two; options that are not given become those that fit the tower."""
    language: LanguageConfig = LanguageConfig()
    """The language model."""

    def __post_init__(self) -> None:
        newline, vocabulary = self.vision.tile_newline, self.language.vocab_size
        require(
            newline is None or 0 <= newline < vocabulary,
            f"model.vision.tile_newline is {newline}; it must be a token of the language model, 0 "
            f"to {vocabulary - 1}.",
        )
        connector = self.connector.behind(self.vision.as_connectors_see_it())
        object.__setattr__(self, "connector", connector)
        side, grid = self.connector.side, self.vision.grid()
        require(
            side is None or side <= grid,
            f"model.connector.side is {side}, but an image has only {grid} x {grid} patches. Use "
            f"at most {grid}.",
        )
        least = self.connector.facts().least_width
        require(
            self.vision.width >= least,
            f"model.vision.width is {self.vision.width}, which model.connector.kind "
            f"{self.connector.kind} narrows to less than 2. Use a width of at least {least}, or "
            "another kind.",
        )
        heads, width = self.connector.heads or 1, self.connector.width or self.vision.width
        require(
            width % heads == 0,
            f"model.vision.width {width} is not a multiple of model.connector.heads {heads}. "
            "Change one of them.",
        )

    def defaults(self) -> dict[str, Any]:
        """What options stand for that are none, by their dotted names."""
        return {
            "model.language.head_width": self.language.resolved_head_width(),
            "model.vision.channel_mean": list(self.vision.resolved_channel_mean()),
            "model.vision.channel_std": list(self.vision.resolved_channel_std()),
        }

    def visual_tokens(self) -> int:
        """Visual tokens per square that the tower sees (q)."""
        return self.connector.visual_tokens(self.vision.grid())

    def tile_positions(self) -> int:
        """Positions that a square takes in the sequence, with the newline behind a tile."""
        return self.visual_tokens() + (self.vision.tile_newline is not None)

    def image_positions(self) -> int:
        """Positions that one image takes at most."""
        return self.vision.most_tiles() * self.tile_positions()

    def connector_kept(self, number: int, ranks: int = 1) -> float:
        """Bytes that an image leaves for the backward pass of a connector that learns, on one rank.

        Args:
            number: bytes of a number.
            ranks: tensor-parallel ranks that share its matrices.
        """
        site = Site(
            grid=self.vision.grid(),
            class_tokens=self.vision.facts().class_tokens,
            vision_width=self.vision.width,
            language_width=self.language.width,
            ranks=ranks,
            number=number,
        )
        return self.connector.kept_bytes(site)

    def connector_layers(self) -> tuple[ConnectorLayer, ...]:
        """The layers of the connector that have weights, in order."""
        return self.connector.weights(self.vision.width, self.language.width)

    def connector_divides(self, ranks: int) -> bool:
        """Whether tensor-parallel ranks could share the connector's matrices equally."""
        sizes = [self.connector.heads or ranks]
        for layer in self.connector_layers():
            axis = layer.split_axis("weight")
            sizes += [] if axis is None else [layer.shape[axis]]
        return all(size % ranks == 0 for size in sizes)

"""Vision towers as Hugging Face has them: what every family shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vila_mc.config.families import VISION_FAMILIES
from vila_mc.config.model import VisionConfig
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.transforms import MergeQkv, Rename, Row, affine

_DEFAULTS = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
"""What transformers takes in every family where a config.json says nothing."""

DEFAULT_LAYER = VisionConfig().select_layer
"""Where nothing says which layer features come from."""
MOST_LAYERS = 1000
_HARMLESS = ("num_image_tokens", "projection_dim", "tie_word_embeddings", "vocab_size")
"""Keys about what stands behind the tower in the model that it was taken from."""
_BESIDE_THE_TOWER = ("logit_scale_init_value", "text_config", "text_config_dict")

_OURS = "vision.decoder.layers.{i}"
_THEIRS = "encoder.layers.{i}"
PATCHES = Rename("vision.conv1.weight", "embeddings.patch_embedding.weight", "e 3 patch patch")
LAYER_ROWS: tuple[Row, ...] = (
    Rename(
        "vision.position_embeddings.weight", "embeddings.position_embedding.weight", "positions e"
    ),
    *affine(f"{_OURS}.input_layernorm", f"{_THEIRS}.layer_norm1", "e", "e"),
    MergeQkv(
        f"{_OURS}.self_attention.linear_qkv.weight",
        f"{_THEIRS}.self_attn.{{part}}_proj.weight",
        "e",
    ),
    MergeQkv(
        f"{_OURS}.self_attention.linear_qkv.bias", f"{_THEIRS}.self_attn.{{part}}_proj.bias", ""
    ),
    *affine(f"{_OURS}.self_attention.linear_proj", f"{_THEIRS}.self_attn.out_proj", "e e", "e"),
    *affine(f"{_OURS}.pre_mlp_layernorm", f"{_THEIRS}.layer_norm2", "e", "e"),
    *affine(f"{_OURS}.mlp.linear_fc1", f"{_THEIRS}.mlp.fc1", "f e", "f"),
    *affine(f"{_OURS}.mlp.linear_fc2", f"{_THEIRS}.mlp.fc2", "e f", "e"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HfVision:
    """A family of towers as Hugging Face has it: config.json both ways, weight names."""

    name: str
    """``model_type`` of the whole model, text side and all; its name in ``config/families.py``."""
    architecture: str
    """The class of transformers that reads the tower alone."""
    image_processor: str
    """The class of transformers that prepares its images."""
    defaults: Mapping[str, Any]
    """What transformers takes where a config.json says nothing, besides what is the same in all."""
    rows: tuple[Row, ...]
    """Rows of its name table."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its own that are written; what a file says of them changes no feature."""

    def tower_type(self) -> str:
        """``model_type`` of the tower alone."""
        return f"{self.name}_vision_model"

    def read(
        self, config: ConfigValues, select_layer: int = DEFAULT_LAYER, *, is_cut: bool = False
    ) -> VisionConfig:
        """The tower that a config.json describes.

        Args:
            config: of the whole model, or of its tower alone. It does not say how images become
                square: as the tower's makers do it, until an image processor says otherwise.
            select_layer: the layer whose output the features are, counted from the end.
            is_cut: whether the files hold no layer above it.

        Raises:
            CheckpointError: a key is missing, has a value of another type, or asks for what this
                engine does not compute; or there is a key that is not known here.
        """
        family = VISION_FAMILIES[self.name]
        if config.get("model_type") == self.name:
            config = _vision_part(config)
        defaults = {**_DEFAULTS, **self.defaults, "layer_norm_eps": family.norm_epsilon}
        config = config.with_defaults(defaults)
        for key, allowed in (
            ("hidden_act", (family.activation, None)),
            ("layer_norm_eps", (family.norm_epsilon,)),
            ("num_channels", (3, None)),
            ("quantization_config", (None,)),
        ):
            config.require(key, *allowed)
        with config.describing():
            vision = VisionConfig(
                family=self.name,
                image_size=config.side("image_size"),
                patch_size=config.side("patch_size"),
                width=config.size("hidden_size"),
                layers=config.size("num_hidden_layers", MOST_LAYERS)
                - (select_layer + 1 if is_cut else 0),
                select_layer=select_layer,
                heads=config.size("num_attention_heads"),
                ffn=config.size("intermediate_size"),
                image_mode=family.image_mode,
            )
        config.refuse_others(_HARMLESS, self.switches)
        return vision

    def write(self, vision: VisionConfig, layers: int) -> dict[str, Any]:
        """config.json of the tower.

        Args:
            vision: its shape.
            layers: how many layers the files hold.
        """
        family = vision.facts()
        return {
            "architectures": [self.architecture],
            "model_type": self.tower_type(),
            "hidden_size": vision.width,
            "intermediate_size": vision.ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": family.activation,
            "layer_norm_eps": family.norm_epsilon,
        } | dict(self.switches)


def _vision_part(config: ConfigValues) -> ConfigValues:
    """The tower in the config of a whole model. Raises CheckpointError if it is said twice."""
    config.require("quantization_config", None)
    part, again = config.part("vision_config"), config.part("vision_config_dict")
    for key in again.values:
        if part.has(key):
            again.require(key, part.values[key])
    config.refuse_others(_HARMLESS, _BESIDE_THE_TOWER)
    return ConfigValues({**again.values, **part.values}, config.where, prefix="vision_config.")

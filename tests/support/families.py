"""A tiny random model of every family that is imported, as its publishers save it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.support.hugging_face import randomised
from vila_mc.config.connectors import ConnectorKind
from vila_mc.convert.formats.registry import FormatName

VOCABULARY = 401  # odd, so that our tables have padding rows
PATCH = 7
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=88,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-4,
)
_TOWER = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    patch_size=PATCH,
)


@dataclass(frozen=True)
class Family:
    """A language model, a tower and the connector to put between them."""

    language: Any
    tower: Any
    connector: ConnectorKind
    formats: tuple[FormatName, ...]
    """What it can be exported to."""
    select_layer: int = -2
    """The layer of the tower that features come from."""

    def save(self, folder: Path) -> None:
        """Write ``folder/llm`` and ``folder/vision``."""
        self.language.save_pretrained(folder / "llm", max_shard_size="100KB")
        self.tower.save_pretrained(folder / "vision")

    def vision_model(self) -> Any:
        """The tower without a text side."""
        return getattr(self.tower, "vision_model", self.tower)


def make(name: str) -> Family:
    """One of ``NAMES``."""
    torch.manual_seed(sum(map(ord, name)))
    return _MAKERS[name]()


def _llama_3_on_clip() -> Family:
    """Llama 3.1's stretched positions; a whole CLIP with its text side."""
    rope = dict(
        rope_type="llama3",
        rope_theta=500.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )
    language = LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=rope))
    text = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=32,
    )
    vision = CLIPVisionConfig(**_TOWER, image_size=4 * PATCH).to_dict()
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    formats: tuple[FormatName, ...] = ("hf-vila", "hf-llava", "vila", "llm")
    return Family(randomised(language), randomised(clip), "mlp2x_gelu", formats)


def _vicuna_16k_on_clip() -> Family:
    """Linearly stretched positions, one key/value head per query head, an odd grid; features of
    the tower's first layer."""
    sizes = {**_SIZES, "num_key_value_heads": 4}
    rope = dict(rope_type="linear", factor=4.0, rope_theta=10000.0)
    language = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope))
    clip = CLIPVisionModel(CLIPVisionConfig(**_TOWER, image_size=3 * PATCH))
    formats: tuple[FormatName, ...] = ("hf-vila", "vila", "llm")
    return Family(randomised(language), randomised(clip), "mlp_downsample", formats, -3)


def _mistral_on_clip() -> Family:
    """A sliding window shorter than the longest sequence; an odd grid."""
    language = MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=96))
    clip = CLIPVisionModel(CLIPVisionConfig(**_TOWER, image_size=3 * PATCH))
    formats: tuple[FormatName, ...] = ("hf-vila", "hf-llava", "vila", "llm")
    return Family(randomised(language), randomised(clip), "linear", formats)


def _qwen2_on_siglip() -> Family:
    """Biases, tied embeddings; pixels at the edge that fill no patch, an odd grid."""
    language = Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True))
    siglip = SiglipVisionModel(SiglipVisionConfig(**_TOWER, image_size=3 * PATCH + 2))
    formats: tuple[FormatName, ...] = ("hf-vila", "vila", "llm")
    return Family(randomised(language), randomised(siglip), "mlp_downsample", formats)


def _qwen3_on_siglip() -> Family:
    """Norms of queries and keys, tied embeddings, heads that are wider together than the model."""
    language = Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=24, tie_word_embeddings=True))
    siglip = SiglipVisionModel(SiglipVisionConfig(**_TOWER, image_size=4 * PATCH))
    formats: tuple[FormatName, ...] = ("hf-vila", "hf-llava", "vila", "llm")
    return Family(randomised(language), randomised(siglip), "mlp2x_gelu", formats)


def _tied_llama_on_siglip() -> Family:
    """Tied embeddings without biases; the connector of the paper's ablation; the last layer."""
    language = LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True))
    siglip = SiglipVisionModel(SiglipVisionConfig(**_TOWER, image_size=4 * PATCH))
    return Family(randomised(language), randomised(siglip), "downsample_linear", ("hf-vila",), -1)


def _wide_heads_on_clip() -> Family:
    """Heads that are wider together than the model; features of the tower's last layer."""
    language = LlamaForCausalLM(LlamaConfig(**_SIZES, head_dim=24))
    clip = CLIPVisionModel(CLIPVisionConfig(**_TOWER, image_size=4 * PATCH))
    formats: tuple[FormatName, ...] = ("hf-vila", "hf-llava", "vila", "llm")
    return Family(randomised(language), randomised(clip), "mlp2x_gelu", formats, -1)


def _qwen2_llava() -> Family:
    """A SigLIP tower inside LlavaForConditionalGeneration, which keeps every patch; its last."""
    language = Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=False))
    siglip = SiglipVisionModel(SiglipVisionConfig(**_TOWER, image_size=4 * PATCH))
    return Family(
        randomised(language), randomised(siglip), "mlp2x_gelu", ("hf-vila", "hf-llava"), -1
    )


_MAKERS = {
    "llama 3 on CLIP": _llama_3_on_clip,
    "vicuna 16k on CLIP": _vicuna_16k_on_clip,
    "mistral on CLIP": _mistral_on_clip,
    "qwen2 on SigLIP": _qwen2_on_siglip,
    "qwen3 on SigLIP": _qwen3_on_siglip,
    "tied llama on SigLIP": _tied_llama_on_siglip,
    "qwen2 on SigLIP as LLaVA": _qwen2_llava,
    "llama with wide heads on CLIP": _wide_heads_on_clip,
}
NAMES = tuple(_MAKERS)

"""Tiny Llama and CLIP models of transformers with random weights, norms and biases included."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 401  # odd, so that our tables have padding rows
GRID = 4
PATCH = 7


def random_llama(seed: int = 0) -> LlamaForCausalLM:
    """Two query heads per key/value head; theta and epsilon are not the defaults."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    return randomised(LlamaForCausalLM(config))


def random_clip(seed: int = 1) -> CLIPVisionModel:
    """Three layers, of which training runs two."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )
    return randomised(CLIPVisionModel(config))


def save(folder: Path, llama: LlamaForCausalLM, clip: CLIPVisionModel) -> None:
    """Write ``folder/llama`` and ``folder/clip`` as their publishers do."""
    llama.save_pretrained(folder / "llama")
    clip.save_pretrained(folder / "clip")


def randomised[Model: torch.nn.Module](model: Model) -> Model:
    """Fresh norms are all 1 and biases 0, where a forgotten or swapped one would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()

"""A tiny VILA put together from transformers' own classes, without any code of the exporter.

Random Llama and full CLIP tower (features from ``hidden_states[-2]``) and the connector in plain
torch, with the training layout of their weights written out tensor by tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests.support.connectors import connector_of, plain
from vila_mc.config.families import ImageMode
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig

VOCABULARY = 401  # odd, so that the tables have padding rows
PADDED = 416
PATCH = 7
SENTENCES = (
    "A chat between a curious user and an artificial intelligence assistant. ASSISTANT: USER:",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "Two dogs run on the beach at 12:30, 1995.  There are two  spaces here.",
    "print('x')\n    indented aaa aaaa abab ababa banana",
)
"""What the tests train their tokenizers on."""


def tiny_model(
    connector: str = "mlp_downsample",
    grid: int = 4,
    image_mode: ImageMode = "crop",
    vocab_size: int = VOCABULARY,
) -> ModelConfig:
    """Two query heads per key/value head; the language model has another width than the tower.

    ``connector`` is a case of ``tests.support.connectors``."""
    return ModelConfig(
        vision=VisionConfig(
            image_size=grid * PATCH,
            patch_size=PATCH,
            width=32,
            layers=3,
            heads=4,
            ffn=48,
            image_mode=image_mode,
        ),
        connector=connector_of(connector),
        language=LanguageConfig(
            layers=2,
            width=64,
            ffn=88,
            heads=4,
            kv_heads=2,
            vocab_size=vocab_size,
            max_positions=256,
        ),
    )


@dataclass
class IndependentVila:
    """The parts, and how they compute together."""

    model: ModelConfig
    llama: LlamaForCausalLM
    clip: CLIPVisionModel
    connector: dict[str, Tensor]

    def logits(self, token_ids: Tensor, pixels: Tensor) -> Tensor:
        """[b, s] with placeholders, [n, 3, y, x] normalised -> [b, s, v]."""
        place = token_ids == self.model.language.vocab_size
        embeds = self.llama.get_input_embeddings()(token_ids.masked_fill(place, 0))
        if len(pixels):
            states = self.clip(pixels, output_hidden_states=True).hidden_states[-2]
            embeds[place] = self._connect(states[:, 1:]).flatten(0, 1)
        return self.llama(inputs_embeds=embeds).logits

    def _connect(self, patches: Tensor) -> Tensor:
        return plain(self.model.connector, self.connector, patches)

    def canonical(self) -> dict[str, Tensor]:
        """The weights under training names and in training layouts."""
        state = _language_state(self.llama.state_dict(), self.model)
        state |= _vision_state(self.clip.state_dict(), self.model)
        return state | {f"connector.{name}": t for name, t in self.connector.items()}


def build(model: ModelConfig, seed: int = 0) -> IndependentVila:
    """Random weights, norms and biases included."""
    torch.manual_seed(seed)
    language, vision = model.language, model.vision
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=language.vocab_size,
            hidden_size=language.width,
            intermediate_size=language.ffn,
            num_hidden_layers=language.layers,
            num_attention_heads=language.heads,
            num_key_value_heads=language.kv_heads,
            max_position_embeddings=language.max_positions,
            rms_norm_eps=language.norm_epsilon,
        )
    )
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.ffn,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
        )
    )
    with torch.no_grad():
        for part in (llama, clip):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return IndependentVila(model, llama.eval(), clip.eval(), _connector_weights(model))


def _connector_weights(model: ModelConfig) -> dict[str, Tensor]:
    weights = {}
    for layer in model.connector_layers():
        scales = {"weight": 0.1 if layer.is_norm else layer.shape[-1] ** -0.5, "bias": 0.1}
        for part, shape in layer.parameters().items():
            start = float(layer.is_norm and part == "weight")
            weights[f"{layer.name}.{part}"] = start + torch.randn(shape) * scales[part]
    return weights


def _interleave(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """Group by group: its query heads, its key head, its value head."""
    chunks = zip(q.chunk(groups), k.chunk(groups), v.chunk(groups), strict=True)
    return torch.cat([piece for group in chunks for piece in group])


def _pad(table: Tensor) -> Tensor:
    return torch.cat([table, torch.full((PADDED - table.shape[0], table.shape[1]), 7.0)])


def _language_state(hf: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    state = {
        "language.embedding.word_embeddings.weight": _pad(hf["model.embed_tokens.weight"]),
        "language.decoder.final_layernorm.weight": hf["model.norm.weight"],
        "language.output_layer.weight": _pad(hf["lm_head.weight"]),
    }
    for i in range(model.language.layers):
        theirs, ours = f"model.layers.{i}.", f"language.decoder.layers.{i}."
        qkv = (hf[f"{theirs}self_attn.{part}_proj.weight"] for part in "qkv")
        gate_up = [hf[f"{theirs}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        state |= {
            f"{ours}input_layernorm.weight": hf[f"{theirs}input_layernorm.weight"],
            f"{ours}self_attention.linear_qkv.weight": _interleave(*qkv, model.language.kv_heads),  # type: ignore[call-arg]
            f"{ours}self_attention.linear_proj.weight": hf[f"{theirs}self_attn.o_proj.weight"],
            f"{ours}pre_mlp_layernorm.weight": hf[f"{theirs}post_attention_layernorm.weight"],
            f"{ours}mlp.linear_fc1.weight": torch.cat(gate_up),
            f"{ours}mlp.linear_fc2.weight": hf[f"{theirs}mlp.down_proj.weight"],
        }
    return state


def _vision_state(hf: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    state = {
        "vision.class_token": hf["embeddings.class_embedding"].view(1, 1, -1),
        "vision.conv1.weight": hf["embeddings.patch_embedding.weight"],
        "vision.position_embeddings.weight": hf["embeddings.position_embedding.weight"],
    }
    for x in ("weight", "bias"):
        state[f"vision.ln_pre.{x}"] = hf[f"pre_layrnorm.{x}"]
        for i in range(model.vision.layers - 1):
            theirs, ours = f"encoder.layers.{i}.", f"vision.decoder.layers.{i}."
            qkv = (hf[f"{theirs}self_attn.{part}_proj.{x}"] for part in "qkv")
            state |= {
                f"{ours}input_layernorm.{x}": hf[f"{theirs}layer_norm1.{x}"],
                f"{ours}self_attention.linear_qkv.{x}": _interleave(*qkv, model.vision.heads),  # type: ignore[call-arg]
                f"{ours}self_attention.linear_proj.{x}": hf[f"{theirs}self_attn.out_proj.{x}"],
                f"{ours}pre_mlp_layernorm.{x}": hf[f"{theirs}layer_norm2.{x}"],
                f"{ours}mlp.linear_fc1.{x}": hf[f"{theirs}mlp.fc1.{x}"],
                f"{ours}mlp.linear_fc2.{x}": hf[f"{theirs}mlp.fc2.{x}"],
            }
    return state

"""A tiny VILA put together from transformers' own classes, without any code of the exporter.

Random Llama and full CLIP tower (features from ``hidden_states[-2]``) and the connector as a loop
over blocks, with the training layout of their weights written out tensor by tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from vila_mc.config.connectors import ConnectorConfig, ConnectorKind
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
    kind: ConnectorKind = "mlp_downsample",
    grid: int = 4,
    image_mode: ImageMode = "crop",
    vocab_size: int = VOCABULARY,
) -> ModelConfig:
    """Two query heads per key/value head; the language model has another width than the tower."""
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
        connector=ConnectorConfig(kind=kind),
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
    connector: nn.ModuleDict

    def logits(self, token_ids: Tensor, pixels: Tensor) -> Tensor:
        """[b, s] with placeholders, [n, 3, y, x] normalised -> [b, s, v]."""
        place = token_ids == self.model.language.vocab_size
        embeds = self.llama.get_input_embeddings()(token_ids.masked_fill(place, 0))
        if len(pixels):
            states = self.clip(pixels, output_hidden_states=True).hidden_states[-2]
            embeds[place] = self._connect(states[:, 1:]).flatten(0, 1)
        return self.llama(inputs_embeds=embeds).logits

    def _connect(self, patches: Tensor) -> Tensor:
        kind = self.model.connector.kind
        if "downsample" in kind:
            patches = self._merge(patches)
        if kind == "mlp_downsample":
            patches = self.connector["norm"](patches)
        patches = self.connector["fc1"](patches)
        if "mlp" in kind:
            patches = self.connector["fc2"](F.gelu(patches))
        return patches

    def _merge(self, patches: Tensor) -> Tensor:
        """Block by block: upper left, upper right, lower left, lower right; outside is zero."""
        grid = self.model.vision.grid()
        rows = patches.unflatten(1, (grid, grid))
        blank = torch.zeros_like(rows[:, 0, 0])

        def at(y: int, x: int) -> Tensor:
            return rows[:, y, x] if y < grid and x < grid else blank

        return torch.stack(
            [
                torch.cat([at(y, x), at(y, x + 1), at(y + 1, x), at(y + 1, x + 1)], dim=-1)
                for y in range(0, grid, 2)
                for x in range(0, grid, 2)
            ],
            dim=1,
        )

    def canonical(self) -> dict[str, Tensor]:
        """The weights under training names and in training layouts."""
        state = _language_state(self.llama.state_dict(), self.model)
        state |= _vision_state(self.clip.state_dict(), self.model)
        return state | {f"connector.{name}": t for name, t in self.connector.state_dict().items()}


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
    width = vision.width * model.connector.factor() ** 2
    connector = nn.ModuleDict({"fc1": nn.Linear(width, language.width)})
    if "mlp" in model.connector.kind:
        connector["fc2"] = nn.Linear(language.width, language.width)
    if model.connector.kind == "mlp_downsample":
        connector["norm"] = nn.LayerNorm(width)
    parts = IndependentVila(model, llama.eval(), clip.eval(), connector.eval())
    with torch.no_grad():
        for part in (llama, clip, connector):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return parts


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

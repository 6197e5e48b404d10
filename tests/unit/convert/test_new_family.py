"""A new family is its facts and its Hugging Face side: two registries, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen3Config, Qwen3ForCausalLM

from tests.support.hugging_face import VOCABULARY, randomised
from vila_mc.checkpoint.whole import whole_model
from vila_mc.config.families import (
    CLIP,
    LANGUAGE_FAMILIES,
    VISION_FAMILIES,
    LanguageFamily,
    VisionFamily,
)
from vila_mc.convert.combine_parts import combine_parts
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.families import registry
from vila_mc.convert.families.clip import CLIP as HF_CLIP
from vila_mc.convert.families.language import LLAMA_ROWS, QK_NORMS, HfLanguage
from vila_mc.convert.families.vision import HfVision
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.import_checkpoint import import_checkpoint
from vila_mc.data.tokenizers.tokenizer import train_tokenizer

HEAD_WIDTH = 24  # not 64 / 4


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of queries and keys, as Qwen3 has them; a CLIP with another GELU and epsilon."""
    monkeypatch.setitem(
        LANGUAGE_FAMILIES, "mind", LanguageFamily(name="mind", title="Mind", qk_norm=True)
    )
    language = HfLanguage(
        name="mind",
        architecture="Qwen3ForCausalLM",
        defaults=dict(rms_norm_eps=1e-6),
        rows=(*LLAMA_ROWS, *QK_NORMS),
        switches=dict(attention_bias=False, use_sliding_window=False),
        harmless=("max_window_layers", "sliding_window"),
    )
    monkeypatch.setitem(registry.LANGUAGES, "mind", language)
    facts = {name: getattr(CLIP, name) for name in VisionFamily.__dataclass_fields__} | dict(
        name="eye", activation="gelu_pytorch_tanh", norm_epsilon=1e-6
    )
    monkeypatch.setitem(VISION_FAMILIES, "eye", VisionFamily(**facts))
    monkeypatch.setitem(
        registry.TOWERS,
        "eye",
        HfVision(
            name="eye",
            architecture="EyeVisionModel",
            image_processor="CLIPImageProcessor",
            defaults=dict(patch_size=7),
            rows=HF_CLIP.rows,
        ),
    )


def _published(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    language = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    models = randomised(Qwen3ForCausalLM(language)), randomised(CLIPVisionModel(vision))
    models[0].save_pretrained(folder / "llm")
    models[1].save_pretrained(folder / "vision")
    for part, kind in (("llm", "mind"), ("vision", "eye_vision_model")):
        where = folder / part / "config.json"
        where.write_text(json.dumps(json.loads(where.read_text()) | {"model_type": kind}))
    return models


def test_a_new_family_is_imported_trained_on_and_exported(families: None, tmp_path: Path) -> None:
    language, tower = _published(tmp_path)
    source = combine_parts(tmp_path / "llm", tmp_path / "vision", "mlp_downsample")
    assert source.model.language.head_width == HEAD_WIDTH
    import_checkpoint(source, tmp_path / "ours")

    with whole_model(tmp_path / "ours") as (ours, _), torch.inference_mode():
        ids = torch.randint(0, VOCABULARY, (2, 60), generator=torch.Generator().manual_seed(1))
        logits = ours.language(ids, None, None)[..., :VOCABULARY]
        assert (logits - language(ids).logits).abs().max() < 1e-5
        images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
        pixels = (images / 255 - torch.tensor(CLIP.channel_mean).view(3, 1, 1)) / torch.tensor(
            CLIP.channel_std
        ).view(3, 1, 1)
        states = tower(pixels, output_hidden_states=True).hidden_states
        assert (ours.patch_features(images) - states[-2]).abs().max() < 1e-5

    tokenizer = tmp_path / "tokenizer.model"
    train_tokenizer(["one two three four five six seven"] * 9, tokenizer, 290)
    for format in ("hf-vila", "vila"):
        export_checkpoint(tmp_path / "ours", tmp_path / format, format, tokenizer=tokenizer)
        again = read_whole(tmp_path / format)
        assert again.model == source.model
        for name, tensor in source.tensors.items():
            assert torch.equal(again.tensors[name].read(), tensor.read()), name

"""Llama, also Vicuna."""

from vila_mc.convert.families.language import HfLanguage

LLAMA = HfLanguage(
    name="llama",
    architecture="LlamaForCausalLM",
    defaults=dict(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    ),
    switches=dict(attention_bias=False, mlp_bias=False),
)

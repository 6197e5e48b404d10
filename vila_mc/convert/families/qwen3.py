"""Qwen3, the dense ones: queries and keys pass a norm, heads have a width of their own."""

from vila_mc.convert.families.language import LLAMA_ROWS, QK_NORMS, HfLanguage

QWEN3 = HfLanguage(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults=dict(
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
    ),
    rows=(*LLAMA_ROWS, *QK_NORMS),
    switches=dict(attention_bias=False, use_sliding_window=False),
    harmless=("max_window_layers", "sliding_window"),  # without use_sliding_window
)

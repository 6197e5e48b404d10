"""Qwen2: a Llama with biases in query, key and value."""

from vila_mc.convert.families.language import LLAMA_ROWS, QKV_BIAS, HfLanguage

QWEN2 = HfLanguage(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults=dict(
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=151936,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
    ),
    rows=(*LLAMA_ROWS, QKV_BIAS),
    switches=dict(use_sliding_window=False),
    harmless=("max_window_layers", "sliding_window"),  # without use_sliding_window
)

"""Mistral: a Llama, perhaps with a sliding window."""

from vila_mc.convert.families.language import HfLanguage

MISTRAL = HfLanguage(
    name="mistral",
    architecture="MistralForCausalLM",
    defaults=dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=131072,
        rms_norm_eps=1e-6,
        sliding_window=4096,
    ),
    # Said, because a reader takes 4096 where nothing is.
    switches=dict(sliding_window=None),
    has_window=True,
)

"""Keys of a config.json that no forward pass depends on.

transformers writes them for every model: bookkeeping, training, token ids, generation. Where a key
is missing here, an import is refused and names it.
"""

# fmt: off
HARMLESS = frozenset((
    "architectures", "attn_implementation", "dtype", "model_type", "torch_dtype",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",

    "attention_dropout", "dropout", "gradient_checkpointing", "initializer_factor",
    "initializer_range", "tf_legacy_loss",

    "add_cross_attention", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "finetuning_task", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "output_scores", "prefix", "problem_type",
    "pruned_heads", "return_dict", "return_dict_in_generate", "task_specific_params",
    "tie_encoder_decoder", "torchscript", "use_bfloat16",

    "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "pad_token_id", "sep_token_id", "tokenizer_class", "unk_token_id",

    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty",
    "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens",
    "temperature", "top_k", "top_p", "typical_p",
))

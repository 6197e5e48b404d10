"""What other programs call our options, so that a message can name ours."""

_USUAL_NAMES = {
    "model.connector.kind": "connector connector_type mm_projector_type projector",
    "model.language.ffn": "ffn_hidden_size intermediate_size mlp_dim",
    "model.language.heads": "n_head n_heads num_attention_heads num_heads",
    "model.language.kv_heads": "n_kv_heads num_key_value_heads num_query_groups",
    "model.language.layers": "depth n_layer n_layers num_hidden_layers num_layers",
    "model.language.max_positions": "max_position_embeddings n_positions",
    "model.language.norm_epsilon": "layernorm_epsilon rms_norm_eps",
    "model.language.rope_theta": "rotary_base",
    "model.language.tied_embeddings": "tie_embeddings tie_word_embeddings",
    "model.language.vocab_size": "padded_vocab_size",
    "model.language.width": "d_model dim hidden_dim hidden_size n_embd",
    "model.vision.image_size": "image_resolution resolution",
    "model.vision.image_mode": "image_aspect_ratio",
    "model.vision.patch_size": "patch_dim",
    "data.blend": "data_path data_paths dataset datasets train_data train_data_path",
    "data.packing": "pack pack_sequences sequence_packing",
    "data.sequence_length": (
        "block_size context_length max_length max_seq_len max_seq_length model_max_length "
        "seq_len seq_length seqlen"
    ),
    "data.tokenizer": "tokenizer_model tokenizer_name tokenizer_path",
    "data.validation": (
        "eval_data eval_data_path eval_dataset val_data val_data_path val_dataset valid_data "
        "validation_data validation_dataset"
    ),
    "data.workers": "dataloader_num_workers num_workers",
    "parallel.context": "context_parallel context_parallel_size cp cp_size",
    "parallel.pipeline": "pipeline_model_parallel_size pipeline_parallel pp pp_size",
    "parallel.sequence": "sequence_parallel sp",
    "parallel.tensor": "tensor_model_parallel_size tensor_parallel tp tp_size",
    "parallel.virtual": "num_virtual_stages virtual_pipeline vpp",
    "optimizer.beta1": "adam_beta1 beta_1 betas",
    "optimizer.beta2": "adam_beta2 beta_2",
    "optimizer.clip_grad": "clip_grad_norm grad_clip gradient_clip max_grad_norm",
    "optimizer.decay": "lr_decay_style lr_scheduler lr_scheduler_type scheduler",
    "optimizer.epsilon": "adam_eps adam_epsilon eps",
    "optimizer.lr": "base_lr learning_rate max_lr peak_lr",
    "optimizer.min_lr": "lr_min min_learning_rate",
    "optimizer.warmup_fraction": "lr_warmup_fraction warmup warmup_iters warmup_ratio warmup_steps",
    "optimizer.weight_decay": "wd",
    "train.epochs": "max_epochs n_epochs num_epochs num_train_epochs",
    "train.global_batch": (
        "batch batch_size global_batch_size gradient_accumulation_steps train_batch_size"
    ),
    "train.keep_last": "keep save_total_limit",
    "train.load": "init_from load_checkpoint model_name_or_path pretrained",
    "train.micro_batch": "micro_batch_size per_device_batch_size per_device_train_batch_size",
    "train.output": "checkpoint_dir output_dir save save_dir",
    "train.phase": "stage",
    "train.precision": "bf16 dtype fp16 fp32 mixed_precision torch_dtype",
    "train.recompute": "activation_checkpointing gradient_checkpointing",
    "train.resume": "resume_from_checkpoint",
    "train.save_every": "checkpoint_interval save_interval save_steps",
    "train.steps": (
        "iterations max_iters max_steps num_steps total_steps train_iters train_steps "
        "training_steps"
    ),
    "train.timeout_minutes": "ddp_timeout timeout",
    "train.validate_every": (
        "eval_every eval_interval eval_iters eval_steps val_check_interval val_every val_interval "
        "validation_every validation_interval validation_steps"
    ),
    "train.trainable": "freeze frozen train_parts",
}
"""Ours, with the names that others give it."""

_ABSENT = {
    "LoRA": "lora qlora peft",
    "DeepSpeed or FSDP": "deepspeed fsdp",
    "FP8 training": "fp8",
    "dropout": "dropout",
    "sink of figures but metrics.jsonl": "tensorboard wandb",
}
"""What others have and we have not, with words in the names of its options."""


def ours(given: str) -> str | None:
    """Our dotted name of an option that has another name elsewhere; None if none is known.

    Args:
        given: a name without leading dashes, dotted or not; ``-`` stands for ``_``. In a section of
            its own it is looked for there: ``model.vision.hidden_size`` is ``model.vision.width``.
    """
    section, _, name = given.replace("-", "_").lower().rpartition(".")
    for option, others in _USUAL_NAMES.items():
        if name in (option.rpartition(".")[2], *others.split()):
            is_tower = section == "model.vision"
            return option.replace("model.language", section) if is_tower else option
    return None


def absent(given: str) -> str | None:
    """What an option would need that is not there at all; None if nothing is known to be."""
    words = set(given.replace("-", "_").replace(".", "_").lower().split("_"))
    return next((what for what, others in _ABSENT.items() if words & {*others.split()}), None)

"""What other programs call our options, so that a message can name ours."""

import re
from collections.abc import Container

_USUAL_NAMES = {
    "model.connector.kind": ("connector connector_type mm_projector mm_projector_type projector"),
    "model.connector.cross_attention_every": "cross_attention_freq cross_attention_frequency",
    "model.connector.queries": "num_queries num_query_tokens",
    "parallel.connector_placement": "connector_parallel parallel.connector",
    "model.language.ffn": "ffn_hidden_size intermediate_size mlp_dim",
    "model.language.heads": "attention_heads n_head n_heads num_attention_heads num_heads",
    "model.language.kv_heads": "n_kv_heads num_key_value_heads num_query_groups",
    "model.language.layers": "depth n_layer n_layers num_hidden_layers num_layers",
    "model.language.max_positions": "max_position_embeddings n_positions",
    "model.language.norm_epsilon": "layernorm_epsilon rms_norm_eps",
    "model.language.rope.scaling": "rope_scaling rope_type rope.kind rope.type",
    "model.language.rope_theta": "rope_base rotary_base",
    "model.language.tied_embeddings": (
        "tie_embeddings tie_word_embeddings untie_embeddings_and_output_weights"
    ),
    "model.language.vocab_size": "padded_vocab_size",
    "model.language.width": "d_model dim hidden_dim hidden_size n_embd",
    "model.vision.image_size": (
        "crop_size image_resolution img_h img_size img_w input_size resolution vision_resolution"
    ),
    "model.vision.image_mode": "image_aspect_ratio image_grid_mode",
    "model.vision.max_tiles": "max_dynamic_patch max_num max_patches",
    "model.vision.patch_size": "patch_dim",
    "model.vision.thumbnail": "use_thumbnail",
    "model.vision.select_layer": (
        "mm_vision_select_layer vision_feature_layer vision_select_layer"
    ),
    "data.blend": (
        "data_mixture data_path data_paths dataset dataset_name dataset_path datasets "
        "train_data train_data_path train_dataset train_file train_files"
    ),
    "data.packing": "pack pack_sequences packed sequence_packing",
    "data.seed": "data_seed",
    "data.sequence_length": (
        "block_size context_length cutoff_len max_len max_length max_seq_len max_seq_length "
        "model_max_length n_ctx seq_len seq_length seqlen"
    ),
    "data.tokenizer": (
        "tokenizer_model tokenizer_name tokenizer_name_or_path tokenizer_path vocab_file"
    ),
    "data.validation": (
        "eval_data eval_data_path eval_dataset val_data val_data_path val_dataset valid_data "
        "validation_data validation_dataset"
    ),
    "data.workers": "data_workers dataloader_num_workers dataloader_workers num_workers",
    "parallel.context": (
        "context_parallel context_parallel_size context_size cp cp_size seq_parallel_size"
    ),
    "parallel.pipeline": (
        "pipeline_model_parallel_size pipeline_parallel pipeline_parallel_size pipeline_size "
        "pp pp_size"
    ),
    "parallel.sequence": "sequence_parallel sp",
    "parallel.tensor": (
        "model_parallel_size tensor_model_parallel_size tensor_parallel tensor_parallel_size "
        "tensor_size tp tp_size"
    ),
    "parallel.virtual": (
        "num_layers_per_virtual_pipeline_stage num_virtual_stages "
        "num_virtual_stages_per_pipeline_rank virtual_pipeline "
        "virtual_pipeline_model_parallel_size vpp"
    ),
    "optimizer.beta1": "adam_beta1 beta_1 betas",
    "optimizer.beta2": "adam_beta2 beta_2",
    "optimizer.clip_grad": (
        "clip_grad_norm grad_clip gradient_clip gradient_clip_val gradient_clipping max_grad_norm"
    ),
    "optimizer.decay": (
        "decay_style lr_decay lr_decay_style lr_schedule lr_scheduler lr_scheduler_type scheduler"
    ),
    "optimizer.epsilon": "adam_eps adam_epsilon eps",
    "optimizer.lr": "base_lr init_lr initial_lr learning_rate lr_max max_lr peak_lr",
    "optimizer.min_lr": "lr_end lr_min min_learning_rate min_lr_rate",
    "optimizer.parts.connector.lr": "connector_lr mm_projector_lr projector_lr",
    "optimizer.parts.language.lr": "language_lr language_model_lr llm_lr",
    "optimizer.parts.vision.layer_decay": (
        "layer_lr_decay layer_wise_lr_decay layerwise_lr_decay llrd lr_layer_decay vit_layer_decay"
    ),
    "optimizer.parts.vision.lr": (
        "backbone_lr mm_vision_tower_lr tower_lr vision_lr vision_tower_lr vit_lr"
    ),
    "optimizer.warmup_fraction": (
        "lr_warmup_fraction lr_warmup_iters lr_warmup_samples lr_warmup_steps "
        "num_warmup_steps warmup warmup_iters warmup_ratio "
        "warmup_samples warmup_steps"
    ),
    "optimizer.weight_decay": "wd",
    "lora.rank": "lora lora_enable lora_r lora_rank peft use_lora use_peft",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "lora_target_modules target_modules",
    "train.epochs": (
        "epoch max_epochs n_epochs num_epoch num_epochs num_train_epochs train_epochs"
    ),
    "train.fp8.amax_algorithm": "amax_compute_algo fp8_amax_compute_algo",
    "train.fp8.amax_history": "amax_history_len fp8_amax_history_len",
    "train.fp8.format": "fp8_format",
    "train.fp8.margin": "fp8_margin",
    "train.fp8.recipe": "fp8 fp8_recipe",
    "train.fp8.primary_weights": (
        "fp8_param fp8_param_gather fp8_params fp8_weights param_gather params"
    ),
    "train.global_batch": (
        "accumulate_grad_batches batch batch_size effective_batch_size global_batch_size "
        "grad_accum grad_accumulation_steps gradient_accumulation_steps total_batch_size "
        "train_batch_size"
    ),
    "train.init_std": "init_method_std initializer_range",
    "train.keep_last": "keep max_checkpoints save_total_limit",
    "train.layers": "transformer_impl",
    "train.load": (
        "finetune init_from load_checkpoint load_from model_name_or_path model_path "
        "pretrain_mm_mlp_adapter pretrained pretrained_checkpoint vision_tower"
    ),
    "train.micro_batch": (
        "batch_size_per_gpu device_batch_size mbs micro_batch_size per_device_batch_size "
        "per_device_train_batch_size"
    ),
    "train.output": (
        "checkpoint_dir logging_dir out_dir output_dir output_path run_dir save save_dir save_path"
    ),
    "train.phase": "stage training_stage",
    "train.precision": ("amp bf16 dtype fp16 fp32 half mixed_precision params_dtype torch_dtype"),
    "train.recompute": (
        "activation_checkpointing gradient_checkpointing "
        "recompute_activations recompute_granularity"
    ),
    "train.resume": "overwrite_output_dir resume_from_checkpoint",
    "train.save_every": (
        "checkpoint_every checkpoint_interval save_every_n_steps save_freq save_interval save_steps"
    ),
    "train.steps": (
        "iterations max_iters max_steps max_train_steps num_iterations num_steps "
        "num_train_steps total_steps train_iters train_samples train_steps training_steps"
    ),
    "train.tensorboard": (
        "report_to tensorboard_dir tensorboard_log_dir tensorboard_logging use_tensorboard"
    ),
    "train.time_limit_minutes": (
        "exit_duration_in_mins max_runtime max_time max_train_time time_limit time_limit_hours "
        "walltime"
    ),
    "train.timeout_minutes": "ddp_timeout distributed_timeout_minutes timeout timeout_seconds",
    "train.validate_every": (
        "eval_every eval_interval eval_iters eval_steps val_check_interval val_every val_interval "
        "validation_every validation_interval validation_steps"
    ),
    "train.wandb": "use_wandb wandb_project",
    "train.trainable": (
        "freeze freeze_backbone freeze_llm freeze_mm_mlp_adapter freeze_vision_tower frozen "
        "train_parts tune_language_model tune_mm_mlp_adapter tune_mm_projector "
        "tune_vision_tower unfreeze_mm_vision_tower"
    ),
}
"""Ours, with the names that others give it; with a dot where only in a section of that name."""

_USUAL_VALUES = {
    "model.connector.kind": {
        r"mlp([1-9]\d?)x_gelu": r"mlpNx_gelu with model.connector.layers \1",
        r"mlp_downsample_2x2(_fix)?": "mlp_downsample",
    },
}
"""Values that others give an option, as patterns, and what they are here."""

_ABSENT = {
    "QLoRA": "bits load_in_4bit load_in_8bit qlora",
    "DeepSpeed or FSDP": "deepspeed fsdp",
    "dropout": "dropout",
    "optimizer but AdamW": "optim",
    "choice among the k likeliest tokens, top_p chooses by probability": "top_k",
}
"""What others have and we have not, with words that the names of its options hold."""

_USUAL_FLAGS = {
    "input": "annotations data data_path dataset file files inputs json_file source src",
    "output": (
        "answers_file dest dst out output_dir output_file output_path output_prefix save_dir"
    ),
    "images": "image_dir image_folder image_path image_root images_dir img_dir",
    "image": "image_file image_path images img",
    "tokenizer": "tokenizer_model tokenizer_name tokenizer_name_or_path tokenizer_path vocab_file",
    "template": "chat_template conv conv_mode conv_template conversation_template",
    "workers": "jobs num_proc num_workers processes threads",
    "text_key": "json_key json_keys text_column text_field",
    "caption_key": "caption_column text_key",
    "checkpoint": "ckpt load model model_base model_name_or_path model_path pretrained",
    "model": "model_name_or_path model_path",
    "questions": "data eval_file question_file",
    "question": "prompt query text",
    "max_new_tokens": "max_length max_tokens",
    "batch": "batch_size",
    "vocab_size": "n_vocab num_tokens vocabulary vocabulary_size",
    "dtype": "precision torch_dtype",
    "shard_size": "max_shard_size",
    "overwrite": "force replace",
    "ranks": "gpus gpus_per_node nproc_per_node num_gpus world_size",
    "nodes": "machines nnodes num_machines num_nodes",
    "rendezvous": "master_addr rdzv_endpoint",
    "config": "config_file recipe",
}
"""Options of the commands beside training's, with the names that other tools give them."""


def ours(given: str, known: Container[str]) -> str | None:
    """Our name of an option that has another name elsewhere; None if none is known.

    Args:
        given: a name without leading dashes, dotted or not; ``-`` stands for ``_``. In a section of
            its own it is looked for there: ``model.vision.hidden_size`` is ``model.vision.width``.
        known: names of the options that there are.
    """
    section, _, name = given.replace("-", "_").lower().rpartition(".")
    within = f"{section.rpartition('.')[2]}.{name}"
    for option, others in _USUAL_NAMES.items():
        if within in others.split() and option in known:
            return option
    for option, others in _USUAL_NAMES.items():
        own = option.rpartition(".")[2]
        is_own = name == own and (not option.startswith("lora.") or "lora" in section)
        if is_own or name in others.split():
            is_tower = section == "model.vision"
            found = option.replace("model.language", section) if is_tower else option
            if found in known:
                return found
    flags = (
        own.replace("_", "-") for own, others in _USUAL_FLAGS.items() if name in others.split()
    )
    return next((flag for flag in flags if flag in known), None)


def our_value(option: str, given: str) -> str | None:
    """What stands here for the value that others give an option; None if none is known."""
    for pattern, own in _USUAL_VALUES.get(option, {}).items():
        if found := re.fullmatch(pattern, given):
            return found.expand(own)
    return None


def absent(given: str) -> str | None:
    """What an option would need that is not there at all; None if nothing is known to be."""
    name = f"_{given.replace('-', '_').replace('.', '_').lower()}_"
    for what, others in _ABSENT.items():
        if any(f"_{word}_" in name for word in others.split()):
            return what
    return None

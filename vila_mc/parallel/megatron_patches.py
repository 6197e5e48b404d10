"""The register of patches: every attribute of Megatron-Core, or of torch, that is replaced.

Written against ``VERSION``: with another one, every entry has to be looked at. What is replaced
while Transformer Engine is emulated stands in ``emulation/te_patches.py``.
"""

from vila_mc.patch import Patch

VERSION = "0.19.2"
"""The release of Megatron-Core."""

# Modules of megatron.core that create tensors with a literal device="cuda".
LITERAL_CUDA_MODULES = (
    "optimizer.optimizer",
    "optimizer.clip_grads",
    "optimizer.grad_scaler",
    "pipeline_parallel.schedules",
    "pipeline_parallel.utils",
    "utils",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.mapping",
    "dist_checkpointing.strategies.state_dict_saver",
    "tensor_parallel.data",
    "transformer.utils",
)
_CUDA_FUNCTIONS = (
    "current_device",
    "set_device",
    "synchronize",
    "current_stream",
    "Stream",
    "Event",
    "stream",
    "manual_seed",
    "get_rng_state",
)
_SCATTERING_MODULES = (
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "distributed.param_and_grad_buffer",
)
_GATHERING_MODULES = (*_SCATTERING_MODULES, "tensor_parallel.utils")
"""Modules of megatron.core that keep a collective of torch under a name of their own."""
_RANDOM = "megatron.core.tensor_parallel.random"
_DISTRIBUTED_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer"
_SHARDS = "megatron.core.dist_checkpointing.strategies.filesystem_async"

CPU_BACKEND = Patch(
    targets=(
        *(f"torch.cuda:{name}" for name in _CUDA_FUNCTIONS),
        f"{_RANDOM}:_get_cuda_rng_state",
        f"{_RANDOM}:_set_cuda_rng_state",
        *(f"megatron.core.{name}:torch" for name in LITERAL_CUDA_MODULES),
        "torch:Tensor.cuda",
        "torch:Tensor.type",
    ),
    what="answers for the CPU; would raise without a GPU otherwise",
    why="CUDA is taken for granted: devices, streams, random state, names of tensor types",
    where="vila_mc.parallel.cpu_backend",
    undone="when the process groups end",
)
GROUP_STEP_ADAMW = Patch(
    targets=(
        "megatron.core.optimizer:Adam",
        "megatron.core.optimizer:USING_PYTORCH_OPTIMIZER",
        f"{_DISTRIBUTED_OPTIMIZER}:HAVE_APEX_OR_TE",
        f"{_DISTRIBUTED_OPTIMIZER}:USING_APEX_OPTIMIZER",
        f"{_DISTRIBUTED_OPTIMIZER}:DistributedOptimizer._set_main_param_and_optimizer_states",
    ),
    what="an AdamW that keeps its step as FusedAdam does; fp32 shards are loaded under no_grad",
    why="resuming torch.optim.AdamW fails or silently diverges; shards are views of leaves",
    where="vila_mc.parallel.adam",
    undone="when the process groups end; never applied beside Transformer Engine or Apex",
)
RECOMPUTE_ABOVE_FROZEN = Patch(
    targets=("megatron.core.transformer.transformer_block:checkpointed_forward",),
    what="frozen layers at the bottom run as they are, and those above are recomputed apart",
    why="a recomputed layer whose input wants no gradient learns nothing, without a word",
    where="vila_mc.parallel.frozen_layers",
    undone="when the process groups end",
)
_LAYERS = "megatron.core.tensor_parallel.layers"
_BUFFERS = "megatron.core.distributed.param_and_grad_buffer"
ALONE = Patch(
    targets=(
        f"{_LAYERS}:linear_with_grad_accumulation_and_async_allreduce",
        f"{_LAYERS}:copy_to_tensor_model_parallel_region",
        f"{_LAYERS}:reduce_from_tensor_model_parallel_region",
        f"{_BUFFERS}:dist_all_gather_func",
        f"{_BUFFERS}:dist_reduce_scatter_func",
    ),
    what="nothing, or torch's own linear layer, where there is nobody to send to",
    why="gloo copies memory onto itself, and every layer passes functions in Python",
    where="vila_mc.parallel.alone",
    undone="when the process groups end; never applied on a GPU",
)
CPU_PASSES = Patch(
    targets=(
        "megatron.core.fusions.fused_bias_swiglu:swiglu",
        "megatron.core.fusions.fused_bias_swiglu:swiglu_back",
        "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_bshd",
    ),
    what="the same in few passes over memory",
    why="the originals are written for a compiler: they make a tensor of every term",
    where="vila_mc.parallel.cpu_passes",
    undone="when the process groups end; never applied on a GPU",
)
NORM_ON_DEVICE = Patch(
    targets=(
        "megatron.core.optimizer.clip_grads:l2_norm_impl",
        "megatron.core.optimizer.clip_grads:multi_tensor_scale_impl",
    ),
    what="one norm and one scaling of all tensors",
    why="the original copies a number to the host for each, and scales through copies",
    where="vila_mc.parallel.gradient_norm",
    undone="when the process groups end; never applied beside Transformer Engine or Apex",
)
HOST_COPY = Patch(
    targets=(f"{_DISTRIBUTED_OPTIMIZER}:DistributedOptimizer.get_parameter_state_dp_zero",),
    what="a description, of which each data-parallel rank fetches what it writes",
    why="the original brings all of it to the host of every rank, in four copies",
    where="vila_mc.checkpoint.host_copy",
    undone="with its optimizer: it is put on that object alone",
)
PLAN_KEEPER = Patch(
    targets=(f"{_SHARDS}:FileSystemWriterAsync",),
    what="a writer that keeps what is to be written",
    why="the original copies all of it, and writes through processes that outlive a dead rank",
    where="vila_mc.checkpoint.shard_writer",
    undone="when a save is planned",
)
SAFE_INDEX = Patch(
    targets=("torch.distributed.checkpoint.filesystem:pickle",),
    what="an unpickler that knows the records of an index alone",
    why="the index of a checkpoint is unpickled, whoever wrote it",
    where="vila_mc.checkpoint.safe_index",
    undone="when the checkpoint is read",
)
TRACED_CALLS = Patch(
    targets=(
        "megatron.core.pipeline_parallel.p2p_communication:P2PCommunicator._communicate",
        "torch.distributed:all_reduce",
        "torch.distributed:broadcast",
        *(f"megatron.core.{name}:dist_all_gather_func" for name in _GATHERING_MODULES),
        *(f"megatron.core.{name}:dist_reduce_scatter_func" for name in _SCATTERING_MODULES),
    ),
    what="the same, and a span of the trace",
    why="Megatron-Core's timers know neither ranks nor bytes, nor any collective within a layer",
    where="vila_mc.train.tracing",
    undone="when a traced step ends",
)
META_PARAMETERS = Patch(
    targets=("torch.nn:Module.register_parameter",),
    what="parameters are registered on the meta device",
    why="modules make their weights in memory, where a whole model may not fit",
    where="vila_mc.checkpoint.streamed_module",
    undone="when the model is built",
)

"""The register of what is replaced in torch and Transformer Engine while the latter is emulated."""

from vila_mc.patch import Patch

_UNDONE = "never: the process is one of emulation to its end"
_INSTALL = "vila_mc.emulation.install"

TE_IMPORT = Patch(
    targets=(
        "torch.cuda:get_device_properties",
        "torch.cuda:get_device_capability",
        "torch.cuda:current_device",
        "transformer_engine.common:load_framework_extension",
    ),
    what="answers of the emulated GPU; no compiled extension is looked for",
    why="the GPU is asked for its capability, and a library is loaded, at import",
    where=_INSTALL,
    undone="when Transformer Engine is imported",
)
TE_TENSORS = Patch(
    targets=("torch:Tensor.is_cuda", "torch:Tensor.to", "torch:Tensor.cuda"),
    what="tensors stay on the CPU, and say to two modules of Transformer Engine that they do not",
    why="modules refuse tensors that are not on CUDA",
    where=_INSTALL,
    undone=_UNDONE,
)
TE_COLLECTIVES = Patch(
    targets=(
        "torch.distributed:_coalescing_manager",
        "torch.distributed.distributed_c10d:_coalescing_manager",
    ),
    what="collectives run one by one",
    why="gloo's coalesced all-gather corrupts tensors of mixed types, such as FP8 bytes with bf16",
    where=_INSTALL,
    undone=_UNDONE,
)
TE_GLOBALS = Patch(
    targets=(
        "transformer_engine.*:torch",
        "transformer_engine.*:_get_cuda_rng_state",
        "transformer_engine.*:_set_cuda_rng_state",
        "transformer_engine.*:canonicalize_device",
    ),
    what="torch whose factories and torch.cuda answer for the CPU, in every module that has it",
    why="device='cuda', streams, capability, generators; a TorchFunctionMode is lost in backward",
    where=_INSTALL,
    undone=_UNDONE,
)

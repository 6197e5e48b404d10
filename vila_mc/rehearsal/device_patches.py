"""The register of what is replaced while a step is rehearsed, in torch and in Megatron-Core.

Written against torch 2.14 and Megatron-Core 0.19.2.
"""

from vila_mc.patch import Patch

_WHERE = "vila_mc.rehearsal.device"
_UNDONE = "when the rehearsal of a rank ends"
_RANDOM = "megatron.core.tensor_parallel.random"

FAKE_CUDA = Patch(
    targets=(
        *(
            f"torch.cuda:{name}"
            for name in (
                "is_available",
                "is_initialized",
                "_lazy_init",
                "device_count",
                "current_device",
                "set_device",
                "get_device_capability",
                "synchronize",
                "empty_cache",
                "memory_allocated",
                "current_stream",
                "default_stream",
                "Stream",
                "Event",
                "stream",
                "manual_seed",
                "manual_seed_all",
                "get_rng_state",
                "set_rng_state",
            )
        ),
        f"{_RANDOM}:_get_cuda_rng_state",
        f"{_RANDOM}:_set_cuda_rng_state",
    ),
    what="answers of one H100 that does nothing",
    why="they ask the driver, which is not there",
    where=_WHERE,
    undone=_UNDONE,
)
PINNED_COPY = Patch(
    targets=("torch:Tensor.pin_memory",),
    what="a plain copy",
    why="page-locked memory is the driver's to give",
    where=_WHERE,
    undone=_UNDONE,
)
FAKE_GROUPS = Patch(
    targets=("torch.distributed:init_process_group", "torch.distributed:new_group"),
    what="groups of torch's fake backend",
    why="the other ranks are not there",
    where=_WHERE,
    undone=_UNDONE,
)
OWN_OBJECTS = Patch(
    targets=("torch.distributed:all_gather_object", "torch.distributed:broadcast_object_list"),
    what="everyone has the object of this rank",
    why="objects travel as numbers in tensors",
    where=_WHERE,
    undone=_UNDONE,
)
CHOSEN_ATTENTION = Patch(
    targets=("torch.nn.functional:scaled_dot_product_attention",),
    what="the kernel that an H100 would take",
    why="torch asks the device, and without one it takes the one that keeps all scores",
    where=_WHERE,
    undone=_UNDONE,
)
DATA_OF_FAKES = Patch(
    targets=("torch._subclasses.fake_tensor:FakeTensor.data", "torch.utils:swap_tensors"),
    what="data that bring their device along",
    why="fake tensors keep their old device, and cannot be swapped while their mode knows them",
    where=_WHERE,
    undone=_UNDONE,
)
KERNELS = Patch(
    targets=("vila_mc.kernels.native:loaded",),
    what="says that the CUDA kernels of csrc/ are here where those for CPUs are",
    why="a GPU would use them; their shapes are registered with the signatures",
    where=_WHERE,
    undone=_UNDONE,
)

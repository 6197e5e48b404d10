"""A CUDA device without a driver, and the ranks around this one: shapes, and no numbers."""

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before torch.cuda is replaced, as what imports it later looks for devices
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

import vila_mc.train.loop  # noqa: F401  # the same
from vila_mc.errors import SetupError
from vila_mc.kernels import native
from vila_mc.rehearsal.attention import attention_of_a_gpu
from vila_mc.rehearsal.device_patches import (
    CHOSEN_ATTENTION,
    DATA_OF_FAKES,
    FAKE_CUDA,
    FAKE_GROUPS,
    KERNELS,
    OWN_OBJECTS,
    PINNED_COPY,
)
from vila_mc.torch_on_cpu import NullStream, do_nothing

CAPABILITY = (9, 0)
"""Of the GPU that is played: an H100's."""
_GPUS = 8
"""Of the machine that is played."""
_SOURCE = Path(__file__).with_name("guard.cpp")


class _Mode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Never touches a device, whatever ``torch.cuda.is_available`` says."""

    @property
    def avoid_device_init(self) -> bool:
        return True


def compile_guard(folder: Path) -> Path:
    """Compile what answers for the driver, for the torch there is: 2 s of one core.

    Args:
        folder: where the library goes.

    Raises:
        SetupError: there is no C++ compiler, or it fails.
    """
    library, torch_folder = folder / "guard.so", Path(torch.__file__).parent
    include = torch_folder / "include"
    compiler = os.environ.get("CXX", "c++")
    command = [
        *(*compiler.split(), "-std=c++20", "-shared", "-fPIC", "-O0"),
        *("-isystem", str(include)),
        *("-isystem", str(include / "torch" / "csrc" / "api" / "include")),
        *(str(_SOURCE), "-o", str(library)),
        *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SetupError(
            f"a rehearsal compiles {_SOURCE.name}, and the C++ compiler {compiler} does not start: "
            f"{error.strerror}. Install one, or name it by CXX."
        ) from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise SetupError(
            f"a rehearsal compiles {_SOURCE.name}, and {compiler} fails for torch "
            f"{torch.__version__}: {said.strip()[:200]}. Name another compiler by CXX."
        )
    return library


@contextmanager
def fake_device(world_size: int, rank: int, guard: Path) -> Iterator[FakeTensorMode]:
    """While active, this process is one rank of many, each with a GPU; no tensor has memory.

    Args:
        world_size: ranks that are played.
        rank: which of them this process is.
        guard: what ``compile_guard`` made.

    Raises:
        SetupError: this torch is no build for CUDA.
    """
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise SetupError(
            f"a rehearsal needs a torch that is built for CUDA (no GPU), and {torch.__version__} "
            "is not. Install the one of PyPI for Linux."
        )
    with ExitStack() as stack:
        stack.enter_context(
            _environment(WORLD_SIZE=str(world_size), RANK=str(rank), LOCAL_RANK="0")
        )
        stack.enter_context(_hooks(guard))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        has_kernels = "cpu" in native.loaded()
        stack.enter_context(FAKE_CUDA.applied(*_cuda_answers()))
        stack.enter_context(PINNED_COPY.applied(lambda tensor, *_: tensor.clone()))
        stack.enter_context(FAKE_GROUPS.applied(*_group_answers(world_size, rank)))
        stack.enter_context(CHOSEN_ATTENTION.applied(attention_of_a_gpu))
        stack.enter_context(without_numbers())
        if has_kernels:
            stack.enter_context(KERNELS.applied(lambda: frozenset({"cpu", "cuda"})))
        yield stack.enter_context(_Mode(allow_non_fake_inputs=True))


@contextmanager
def without_numbers() -> Iterator[None]:
    """While active, what fake tensors cannot do is answered: new data, objects sent."""
    base: Any = torch._C.TensorBase.data

    def put(tensor: Any, value: Any) -> None:
        base.__set__(tensor, value)
        if isinstance(tensor, FakeTensor) and isinstance(value, FakeTensor):
            tensor.fake_device = value.fake_device

    with (
        own_objects(),
        DATA_OF_FAKES.applied(property(base.__get__, put), put),
    ):
        yield


@contextmanager
def own_objects() -> Iterator[None]:
    """While active, what ranks send each other as objects is what this rank has."""

    def everyone_has(objects: list[Any], mine: Any, group: Any = None) -> None:
        objects[:] = [mine] * len(objects)

    with OWN_OBJECTS.applied(everyone_has, do_nothing):
        yield


def _cuda_answers() -> list[Any]:
    """What stands for every attribute of ``FAKE_CUDA``, in its order."""

    def state(*_: Any, **__: Any) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: _GPUS,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: CAPABILITY,
        "memory_allocated": lambda *_: 0,
        "get_rng_state": state,
        "_get_cuda_rng_state": state,
    }
    streams = ("current_stream", "default_stream", "Stream", "Event", "stream")
    answers |= dict.fromkeys(streams, NullStream)
    names = [target.partition(":")[2] for target in FAKE_CUDA.targets]
    return [answers.get(name, do_nothing) for name in names]


def _group_answers(world_size: int, rank: int) -> tuple[Callable[..., Any], ...]:
    """The same of ``FAKE_GROUPS``."""
    init, new = dist.init_process_group, dist.new_group

    def init_process_group(*_: Any, **__: Any) -> None:
        init("fake", store=FakeStore(), rank=rank, world_size=world_size)

    def new_group(ranks: Any = None, *_: Any, **options: Any) -> Any:
        kept = {name: options[name] for name in ("group_desc",) if name in options}
        return new(ranks, backend="fake", **kept)

    return init_process_group, new_group


@contextmanager
def _hooks(guard: Path) -> Iterator[None]:
    library = ctypes.CDLL(str(guard))
    library.answer_for_cuda()
    try:
        yield
    finally:
        library.put_back()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

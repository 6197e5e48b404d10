"""Sees every operation of a rank: memory, FLOPs, collectives, waits, what a GPU would refuse."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from vila_mc.rehearsal.ledger import Ledger, where_now
from vila_mc.rehearsal.record import Call

_aten = torch.ops.aten
_MESSAGES = {"send": "send", "recv_": "receive"}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode above ``FakeTensorMode``, or above nothing for real tensors.

    Args:
        device: of the model: ``cuda``, or ``cpu`` to compare with real tensors.
        is_real: whether operations are really done. Collectives never are: of one rank they change
            nothing, and gloo takes memory for them that NCCL does not.
    """

    def __init__(self, device: str = "cuda", *, is_real: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self._is_real = device, is_real
        self.ledgers = {kind: Ledger(kind) for kind in {device, "cpu"}}
        self.phase: str | None = "build"
        """What everything is for; None in a step, where autograd tells."""
        self._last_kind = ""
        self._is_idle = True
        """Whether the device has nothing to do, as the host has waited for all it had."""
        self.group_names: dict[str, str] = {}
        self.forget_step()

    def forget_step(self) -> None:
        """Count operations of the next step anew."""
        self.flops: Counter[str] = Counter()
        self.calls: list[Call] = []
        self.waits: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.groups: dict[str, list[int]] = {}
        for ledger in self.ledgers.values():
            ledger.start()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """While active, everything is for ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def kind_of_work(self) -> str:
        """build, forward, backward, recompute, update or save."""
        if self.phase is not None:
            return self.phase
        if torch._C._current_graph_task_id() == -1:
            return "forward"
        node = (
            torch._C._current_autograd_node()
        )  # what it runs again has no gradients inside layers
        is_again = node is not None and node.name() == "CheckpointFunctionBackward"
        return "recompute" if is_again else "backward"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        kind = self.kind_of_work()
        if kind != self._last_kind:
            self._last_kind = kind
            for ledger in self.ledgers.values():
                ledger.stretch += 1
        if func.namespace == "c10d":
            return self._collective(func, args, kwargs, kind)
        if not self._is_real:
            answer = self._answered(func, args, kwargs, kind)
            if answer is not None:
                return answer[0]
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._is_idle = False
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops[kind] += flop_registry[packet](*args, **kwargs, out_val=out)
        self._see(out, func, kind)
        return out

    # ------------------------------------------------------------ what has no number

    def _answered(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, kind: str
    ) -> tuple[Any] | None:
        """The answer to what needs numbers, and to what the host computes for itself in a step."""
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        is_fake = any(isinstance(t, FakeTensor) for t in tensors)
        if func is _aten._local_scalar_dense.default and is_fake:
            return (self._number(args[0]),)
        if func is _aten.equal.default and is_fake:
            self._wait(tensors)
            return (True,)
        if func is _aten._to_copy.default:
            self._look_at_copy(args[0], kwargs)
        if is_fake or self.phase in ("build", "save"):
            return None
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return None
        with unset_fake_temporarily():  # labels, lengths, figures: real, because they decide shapes
            out = func(*args, **kwargs)
        self._see(out, func, kind)
        return (out,)

    def _number(self, scalar: Tensor) -> bool | int | float:
        self._wait([scalar])
        if scalar.dtype == torch.bool:
            return False
        return 1.0 if scalar.dtype.is_floating_point else 1

    def _look_at_copy(self, source: Tensor, kwargs: Any) -> None:
        """A copy to the host is waited for; one from memory that is not page-locked as well."""
        to = kwargs.get("device")
        if to is None or torch.device(to).type == source.device.type:
            return
        if not kwargs.get("non_blocking"):
            self._wait([source], to=torch.device(to).type)

    def _wait(self, tensors: list[Tensor], to: str = "") -> None:
        is_here = self.device == "cuda" and "cuda" in (to, *(t.device.type for t in tensors))
        if is_here and not self._is_idle:
            self.waits[where_now()] += 1
            self._is_idle = True

    def _complain(self, what: str) -> None:
        self.complaints[f"{what}, at {where_now()}"] += 1

    # ------------------------------------------------------------ memory

    def _see(self, out: Any, func: Any, kind: str) -> None:
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type in self.ledgers:
                is_new = self.ledgers[tensor.device.type].take(
                    tensor, _MEMORY.get(kind, kind), lambda: (_op_name(func), where_now())
                )
                if is_new and tensor.device.type == self.device:
                    self._is_idle = False

    # ------------------------------------------------------------ other ranks

    def _collective(self, func: Any, args: tuple[Any, ...], kwargs: Any, kind: str) -> Any:
        self._is_idle = False
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        tensors = [t for value in args[:2] for t in tree_iter(value) if isinstance(t, Tensor)]
        group = ProcessGroup.unbox(given["process_group"]) if "process_group" in given else None
        op = str(func._opname)
        if group is not None and group.size() > 1:
            ranks = dist.get_process_group_ranks(group)
            label = self.group_names.get(group.group_name, group.group_name)
            self.groups.setdefault(label, ranks)
            peer = None
            if op in _MESSAGES:
                peer = ranks[given["dst" if op == "send" else "src"]]
            self.calls.append(
                Call(
                    op=_MESSAGES.get(op, op.strip("_")),
                    group=label,
                    num_bytes=max((_bytes_of(value) for value in args[:2]), default=0),
                    dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
                    phase=kind,
                    where=where_now(),
                    peer=peer,
                )
            )
        for tensor in tensors if self.device == "cuda" else []:
            if tensor.device.type != "cuda":
                self._complain(f"{op}: a tensor on {tensor.device}, which NCCL refuses")
            elif not tensor.is_contiguous():
                self._complain(
                    f"{op}: {list(tensor.shape)} with strides {list(tensor.stride())} is not "
                    "contiguous, which NCCL refuses"
                )
        returns = func._schema.returns
        if not returns:
            return None
        work = FakeWork().boxed()
        return work if len(returns) == 1 else (args[0], work)


_MEMORY = {"forward": "activations", "backward": "temporary", "update": "temporary"}
"""Kind of memory by the kind of work that takes it; others have the same name."""


def _bytes_of(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_iter(value) if isinstance(t, Tensor))


def _op_name(func: Any) -> str:
    node = torch._C._current_autograd_node()
    name = str(func._overloadpacket)
    return f"{name} of {node.name()}" if node is not None else name

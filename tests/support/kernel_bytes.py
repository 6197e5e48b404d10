"""Bytes that the CUDA kernels move under emulation, against the least that would do."""

from dataclasses import dataclass

from torch import Tensor

from tests.kernels.calls import Call
from tests.support.emulated_ops import EmulatedOps


@dataclass(frozen=True, slots=True)
class KernelBytes:
    """What one call moved between its threads and memory."""

    op: str
    moved: int
    least: int
    """Every input that is needed read once, every output written once."""

    def ratio(self) -> float:
        return self.moved / self.least


def count_bytes(call: Call, emulated: EmulatedOps) -> KernelBytes:
    """Run a call on the build that counts."""
    assert emulated.build == "traffic"
    made = call.on(emulated)
    moved = sum(tensor.loaded + tensor.stored for tensor in emulated.traffic.values())
    return KernelBytes(call.op, moved, least_bytes(call, made))


def least_bytes(call: Call, made: tuple[Tensor, ...]) -> int:
    """Inputs and outputs, less what nobody needs to read."""
    inputs = [value for value in call.arguments if isinstance(value, Tensor)]
    total = sum(tensor.nbytes for tensor in (*inputs, *made))
    if call.op == "downsample_gather" or call.op == "downsample_layernorm":
        features, has_cls = inputs[0], call.arguments[-1 if call.op.endswith("gather") else -2]
        total -= features[:, : int(has_cls)].nbytes  # the class token
    if call.op in ("splice_visual", "splice_visual_text_grad"):
        text, starts = inputs[0], inputs[-1]
        each = inputs[1].shape[1] if call.op == "splice_visual" else call.arguments[2]
        row_bytes = text.shape[2] * text.element_size()
        total -= starts.shape[0] * each * row_bytes  # text where visual tokens stand
    if call.op == "splice_visual_visual_grad":
        total -= inputs[0].nbytes - made[0].nbytes  # the gradient where text stands
    return total

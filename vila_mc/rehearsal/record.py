"""What a rehearsal writes down of one rank; plain values, which travel as JSON."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one shape that were made at one place."""

    kind: str
    op: str
    where: str
    """``file:line`` of vila_mc or Megatron-Core."""
    shape: tuple[int, ...]
    dtype: str
    count: int
    num_bytes: int
    """Of all of them."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The tensors that were there when memory was greatest."""

    num_bytes: int
    by_kind: dict[str, int]
    tensors: list[TensorGroup]
    """The largest, by place."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a collective, or one message to or from another rank."""

    op: str
    group: str
    """What the group is for."""
    num_bytes: int
    """The greater of what goes in and what comes out."""
    dtype: str
    phase: str
    where: str
    peer: int | None = None
    """The rank at the other end of a message."""


@dataclass(frozen=True, slots=True)
class RankRecord:
    """What one rank of a layout does in a step, and what it takes."""

    rank: int
    tensor: int
    """Tensor-parallel rank."""
    pipeline: int
    """Pipeline stage."""
    num_weights: int
    num_trained: int
    microbatches: int
    """How many were rehearsed."""
    build: Peak
    step: Peak
    flops: dict[str, int]
    """Of the rehearsed microbatches, by phase: forward, backward, recompute, update."""
    calls: list[Call]
    """In order, of one step."""
    groups: dict[str, list[int]]
    """Ranks of each group with more than one."""
    waits: dict[str, int]
    """``file:line`` -> times a step in which the host waits there for what the device has to do."""
    complaints: list[str]
    """What a GPU or NCCL would refuse or do slowly."""
    save: Peak | None = None
    host: dict[str, int] = field(default_factory=dict)
    """Greatest bytes of tensors in the host's memory: build, step, save."""
    seconds: float = 0.0

    def to_json(self) -> bytes:
        """For ``from_json``."""
        return _RECORDS.dump_json(self)

    @staticmethod
    def from_json(text: bytes) -> "RankRecord":
        """What ``to_json`` wrote."""
        return _RECORDS.validate_json(text)


_RECORDS = TypeAdapter(RankRecord)

"""What a rehearsal says: one table for people, and the same as JSON."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vila_mc.rehearsal.every_rank import Rehearsal
from vila_mc.rehearsal.record import Peak, RankRecord
from vila_mc.table import aligned

GIB, MIB = 2**30, 2**20
_NAMED = 12
"""Groups of tensors in the table."""
_PER_MICROBATCH = ("forward", "backward", "recompute")
_PER_STEP_GROUPS = ("data", "gradient norm", "world", "embedding", "position embedding", "model")
_CONTEXT = round(0.7 * GIB)
"""What the CUDA context, loaded kernels and workspaces of cuBLAS and cuDNN are allowed to take."""
_COMMUNICATOR = round(0.25 * GIB)
"""What NCCL is allowed for the buffers of each group."""
_FRAGMENTATION = 0.05
"""Share of the peak that the allocator may hold and not give."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls of one kind in a whole step of one rank."""

    op: str
    group: str
    ranks: int
    calls: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """Whether a rank fits a GPU."""

    gpu_bytes: int
    seen: int
    """Greatest peak of start, step and save."""
    unseen: dict[str, int]
    """What it is allowed beyond: estimates, not measured."""

    def needed(self) -> int:
        """Bytes in all."""
        return self.seen + sum(self.unseen.values())

    def fits(self) -> bool:
        """Whether there is room."""
        return self.needed() <= self.gpu_bytes


def traffic(rehearsal: Rehearsal, record: RankRecord) -> list[Traffic]:
    """Calls and bytes of a whole step: those of a microbatch as often as there are microbatches."""
    factor = rehearsal.microbatches / record.microbatches
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for call in record.calls:
        repeats = call.phase in _PER_MICROBATCH and call.group not in _PER_STEP_GROUPS
        times = factor if repeats else 1.0
        entry = found[call.group, call.op]
        entry[0] += times
        entry[1] += times * call.num_bytes
    return sorted(
        (
            Traffic(op, group, len(record.groups[group]), round(calls), round(num_bytes))
            for (group, op), (calls, num_bytes) in found.items()
        ),
        key=lambda one: -one.num_bytes,
    )


def flops(rehearsal: Rehearsal, record: RankRecord) -> dict[str, float]:
    """Of a whole step, by phase."""
    factor = rehearsal.microbatches / record.microbatches
    return {
        phase: count * (factor if phase in _PER_MICROBATCH else 1.0)
        for phase, count in record.flops.items()
    }


def room(rehearsal: Rehearsal, record: RankRecord, gpu_bytes: float) -> Room:
    """Whether a rank fits a GPU that holds ``gpu_bytes``, with what is not seen."""
    language, train = rehearsal.config.model.language, rehearsal.config.train
    peaks = [record.build, record.step, *([record.save] if record.save else [])]
    seen = max(peak.num_bytes for peak in peaks)
    heads = language.heads * language.resolved_head_width() // rehearsal.layout.tensor
    positions = train.rows_of_a_pass() * rehearsal.config.data.sequence_length
    unseen = {
        "CUDA, cuBLAS, cuDNN": _CONTEXT,
        f"NCCL for {len(record.groups)} groups": _COMMUNICATOR * len(record.groups),
        "attention's fp32 gradients": 4 * positions * heads if train.precision != "fp32" else 0,
        "fragmentation": round(_FRAGMENTATION * seen),
    }
    return Room(round(gpu_bytes), seen, {what: size for what, size in unseen.items() if size})


def complaints(rehearsal: Rehearsal) -> list[str]:
    """What would go wrong or slowly, in one line each."""
    lines = [f"rank {f.rank} fails: {f.error}, at {f.where}" for f in rehearsal.failures]
    lines += rehearsal.matching.differences
    for record in rehearsal.records:
        lines += [f"rank {record.rank}: {complaint}" for complaint in record.complaints]
    return lines


def is_good(rehearsal: Rehearsal, gpu_bytes: float) -> bool:
    """Whether every rank gets to the end of its step, fits, and matches the others."""
    rooms = (room(rehearsal, record, gpu_bytes) for record in rehearsal.records)
    return not complaints(rehearsal) and all(one.fits() for one in rooms)


def as_dict(rehearsal: Rehearsal, gpu_bytes: float) -> dict[str, Any]:
    """Everything but the single calls, as plain values."""
    ranks = []
    for record in rehearsal.records:
        values = asdict(record)
        del values["calls"]
        values["traffic_of_a_step"] = [asdict(one) for one in traffic(rehearsal, record)]
        values["flops_of_a_step"] = flops(rehearsal, record)
        one = room(rehearsal, record, gpu_bytes)
        values["room"] = asdict(one) | {"needed": one.needed(), "fits": one.fits()}
        ranks.append(values)
    return {
        "layout": asdict(rehearsal.layout),
        "world_size": rehearsal.layout.world_size(),
        "microbatches": rehearsal.microbatches,
        "batch": asdict(rehearsal.batch),
        "matching": asdict(rehearsal.matching),
        "complaints": complaints(rehearsal),
        "is_good": is_good(rehearsal, gpu_bytes),
        "ranks": ranks,
        "seconds": round(rehearsal.seconds, 1),
    }


def as_text(rehearsal: Rehearsal, gpu_bytes: float) -> str:
    """The table for people; a stage is shown by its rank with the greatest peak."""
    stages = _of_each_stage(rehearsal.records)
    lines = _head(rehearsal)
    if stages:
        lines += ["", *_stage_table(rehearsal, stages)]
    greatest = max(stages, key=lambda record: record.step.num_bytes, default=None)
    if greatest is not None:
        lines += ["", f"largest tensors at the step's peak of stage {greatest.pipeline}:"]
        lines += _largest(greatest.step)
        lines += ["", f"what a rank of stage {greatest.pipeline} sends and receives in a step:"]
        lines += _traffic_lines(rehearsal, greatest)
        lines += ["", f"where a rank of stage {greatest.pipeline} waits for its device:"]
        lines += [f"  {times:5} x  {where}" for where, times in greatest.waits.items()]
    found = complaints(rehearsal)
    lines += [
        "",
        _matching_line(rehearsal),
        *(f"wrong: {line}" for line in found),
        *(_fits_line(rehearsal, record, gpu_bytes) for record in stages),
    ]
    return "\n".join(lines)


def _matching_line(rehearsal: Rehearsal) -> str:
    matching, ranks = rehearsal.matching, len(rehearsal.records)
    if not matching.num_collectives + matching.num_messages + len(matching.differences):
        return (
            f"nothing to match: the calls of {ranks} distinct {'rank' if ranks == 1 else 'ranks'} "
            "meet those of data-parallel replicas alone, which are the same"
        )
    verdict = f"{len(matching.differences)} differ" if matching.differences else "all match"
    return (
        f"{matching.num_collectives:,} collectives and {matching.num_messages:,} messages of "
        f"{ranks} ranks compared: {verdict}"
    )


def _head(rehearsal: Rehearsal) -> list[str]:
    layout = rehearsal.layout
    ranks = len(rehearsal.records) + len(rehearsal.failures)
    rehearsed = min((r.microbatches for r in rehearsal.records), default=0)
    return [
        f"rehearsed: {layout.world_size()} ranks, {layout}; {ranks} distinct ones on fake H100s, "
        f"{rehearsed} of {rehearsal.microbatches} microbatches, {rehearsal.seconds:.0f} s",
        f"every microbatch: {rehearsal.batch.origin}",
    ]


def _of_each_stage(records: Sequence[RankRecord]) -> list[RankRecord]:
    stages: dict[int, RankRecord] = {}
    for record in records:
        there = stages.get(record.pipeline)
        if there is None or record.step.num_bytes > there.step.num_bytes:
            stages[record.pipeline] = record
    return [stages[stage] for stage in sorted(stages)]


def _stage_table(rehearsal: Rehearsal, stages: Sequence[RankRecord]) -> list[str]:
    kinds: dict[str, int] = defaultdict(int)
    for record in stages:
        for kind, size in record.step.by_kind.items():
            kinds[kind] += size
    by_size = sorted(kinds, key=lambda kind: -kinds[kind])

    def gib(size: Callable[[RankRecord], int | None]) -> list[str]:
        sizes = [size(record) for record in stages]
        return ["" if size is None else f"{size / GIB:.2f}" for size in sizes]

    rows = [
        ["", *(f"stage {record.pipeline}" for record in stages)],
        ["weights of a rank, millions", *(f"{r.num_weights / 1e6:,.1f}" for r in stages)],
        ["trained", *(f"{r.num_trained / 1e6:,.1f}" for r in stages)],
        *([f"GiB: {kind}", *gib(_of_kind(kind))] for kind in by_size),
        ["GiB: peak of a step", *gib(lambda record: record.step.num_bytes)],
        ["GiB: peak of the start", *gib(lambda record: record.build.num_bytes)],
    ]
    if any(record.save for record in stages):
        rows.append(["GiB: peak of a save", *gib(lambda r: r.save.num_bytes if r.save else None)])
    for moment in sorted({moment for record in stages for moment in record.host}):
        rows.append([f"GiB: tensors on the host, {moment}", *gib(_on_the_host(moment))])
    per_phase = [flops(rehearsal, record) for record in stages]
    for phase in _PER_MICROBATCH:
        if any(phase in one for one in per_phase):
            counts = (f"{one.get(phase, 0) / 1e12:,.2f}" for one in per_phase)
            rows.append([f"TFLOP of a step, {phase}", *counts])
    return aligned(rows)


def _of_kind(kind: str) -> Callable[[RankRecord], int]:
    return lambda record: record.step.by_kind.get(kind, 0)


def _on_the_host(moment: str) -> Callable[[RankRecord], int | None]:
    return lambda record: record.host.get(moment)


def _largest(peak: Peak) -> list[str]:
    rows = [
        [
            f"{one.num_bytes / MIB:,.1f} MiB",
            f"{one.count} x {list(one.shape)} {one.dtype}",
            one.kind,
            one.op.removeprefix("aten."),
            one.where,
        ]
        for one in peak.tensors[:_NAMED]
    ]
    return [f"  {line}" for line in aligned(rows)]


def _traffic_lines(rehearsal: Rehearsal, record: RankRecord) -> list[str]:
    rows = [
        [
            f"{one.num_bytes / MIB:,.1f} MiB",
            f"{one.calls:,} x {one.op}",
            f"{one.group} ({one.ranks} ranks)",
        ]
        for one in traffic(rehearsal, record)
    ]
    return [f"  {line}" for line in aligned(rows)] or ["  nothing"]


def _fits_line(rehearsal: Rehearsal, record: RankRecord, gpu_bytes: float) -> str:
    one = room(rehearsal, record, gpu_bytes)
    unseen = ", ".join(f"{what} {size / GIB:.2f}" for what, size in one.unseen.items())
    return (
        f"stage {record.pipeline} fits {one.gpu_bytes / GIB:.1f} GiB: "
        f"{'yes' if one.fits() else 'NO'}, {one.seen / GIB:.2f} GiB seen and "
        f"{(one.needed() - one.seen) / GIB:.2f} allowed for what is not ({unseen})"
    )

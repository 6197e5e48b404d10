"""What a rehearsal says of the 7B's steps, beside what one H100 measured of the same steps.

The slices are those of ``gpu_training.py``, whose figures stand in docs/gpu_results.md.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

from claims import Claim, parser, report
from gpu_training import CASES, microbatch

from vila_mc.config.load import load_run
from vila_mc.kernels import native
from vila_mc.processes import fork_child
from vila_mc.rehearsal.device import compile_guard
from vila_mc.rehearsal.one_rank import rehearse_rank
from vila_mc.rehearsal.record import RankRecord

GIB = 2**30
RECIPE = Path(__file__).parents[1] / "examples" / "pretrain_7b.yaml"
MEASURED = (22.9, 22.9, 22.9, 22.9, 20.2, 31.3, 23.6)
"""GiB: ``max_memory_allocated`` of each of ``CASES``, start included (docs/gpu_results.md)."""
LAYOUTS = ((8, "none"), (8, "full"), (128, "none"), (128, "full"))
"""Ranks that share the 7B's second phase, and what is recomputed."""


def slices(folder: Path, chosen: Sequence[int]) -> list[Claim]:
    """Each slice's peak against the measured one."""
    claims = []
    for index in chosen:
        case, measured = CASES[index], MEASURED[index]
        run = case.run(tiny=False)

        def work(index: int = index) -> None:
            case = CASES[index]
            run = case.run(tiny=False)
            if not case.with_kernels:
                native.loaded = frozenset  # type: ignore[assignment]
            batch = microbatch(run, case)
            record = rehearse_rank(run, 1, 0, folder / "guard.so", case.rows, batch)
            (folder / "record").write_bytes(record.to_json())

        record = _forked(work, folder)
        peak = max(record.build.num_bytes, record.step.num_bytes) / GIB
        how = f"{run.train.global_batch} microbatches; the H100 measured {measured} GiB"
        claims.append(Claim(f"{case.name}: peak", peak, "GiB", how=how))
        name = f"{case.name}: rehearsed over measured"
        claims.append(Claim(name, peak / measured, "", how=how))
    return claims


def recipe(folder: Path, world_size: int, recompute: str) -> list[Claim]:
    """The first stage of the 7B's second phase, as the recipe divides it."""
    run = load_run([RECIPE], {"train.micro_batch": "1", "train.recompute": recompute})

    def work() -> None:
        record = rehearse_rank(run, world_size, 0, folder / "guard.so", 4)
        (folder / "record").write_bytes(record.to_json())

    record = _forked(work, folder)
    assert record.save is not None
    what = f"7B pretrain on {world_size}, recompute {recompute}"
    return [
        Claim(f"{what}: step", record.step.num_bytes / GIB, "GiB"),
        Claim(f"{what}: start", record.build.num_bytes / GIB, "GiB"),
        Claim(f"{what}: save", record.save.num_bytes / GIB, "GiB"),
        Claim(f"{what}: host, save", record.host["save"] / GIB, "GiB"),
        Claim(f"{what}: host waits", sum(record.waits.values()), ""),
    ]


def _forked(work: object, folder: Path) -> RankRecord:
    """What ``work`` leaves in ``folder``, done in a process of its own."""
    assert callable(work)
    process = fork_child(work)
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit("a rehearsal failed")
    record = RankRecord.from_json((folder / "record").read_bytes())
    print(f"rehearsed {record.num_weights:,} weights in {record.seconds:.0f} s", flush=True)
    return record


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--cases", type=int, nargs="*", help="which slices (default: all)")
    options.add_argument("--layouts", type=int, nargs="*", help="which layouts (default: all)")
    arguments = options.parse_args()
    cases = range(len(CASES)) if arguments.cases is None else arguments.cases
    layouts = range(len(LAYOUTS)) if arguments.layouts is None else arguments.layouts
    claims = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_guard(folder)
        claims += slices(folder, cases)
        for index in layouts:
            claims += recipe(folder, *LAYOUTS[index])
    return report(claims, arguments)


if __name__ == "__main__":
    raise SystemExit(main())

"""How long a checkpoint keeps training on a GPU waiting, written in the background and at once.

The widths of VILA-7B with one layer of the language model, of which the connector learns: 2 GB.
"""

import shutil
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import torch
from gpu_kernels import table
from gpu_training import Case, microbatch

from vila_mc.checkpoint.manifest import Manifest, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed
from vila_mc.train.step import Trainer

CASE = Case("save", 1, trainable=("connector",), sequence=512, images=1, rows=1)
TURNS = (True, False, True, False)
"""In the background or at once; what comes first also pays for what is done once."""


def saving_figures(folder: Path, tiny: bool) -> None:
    """A row for every save, while steps are trained between them."""
    run = CASE.run(tiny)
    with distributed(run.parallel, seed=1) as ranks:
        with torch.device(ranks.device):
            stages = build_stages(run, ranks)
        trainer = Trainer(run, ranks, stages)
        batches = [microbatch(run, CASE)]
        rows: list[tuple[str, ...]] = [("save", "training waits", "until it is visible", "size")]
        for number, in_background in enumerate(TURNS, 1):
            trainer.step(batches)
            output = folder / str(number)
            output.mkdir()
            placed = replace(run, train=replace(run.train, output=output))
            manifest = Manifest(
                step=number, samples_seen=0, config=placed, layout=None, versions=versions()
            )
            started = time.perf_counter()
            saving = PendingSave(
                manifest, ranks, stages, trainer.optimizer, in_background=in_background
            )
            waited = time.perf_counter() - started
            path = saving.finish()
            took = time.perf_counter() - started
            size = sum(file.stat().st_size for file in path.iterdir())
            shutil.rmtree(output)
            how = "in the background" if in_background else "at once"
            rows.append(
                (
                    *(f"{number}, {how}", f"{waited if in_background else took:.2f} s"),
                    *(f"{took:.2f} s", f"{size / 2**30:.2f} GiB"),
                )
            )
            print(" | ".join(rows[-1]), flush=True)
    print()
    table(*rows)


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="at sizes that a CPU takes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("no GPU: nothing was measured")
        return 0
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saving_figures(Path(folder), arguments.tiny)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

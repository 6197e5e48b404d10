"""Damaged JSON of model directories, 20,000 of them: each is read, or refused in one line."""

import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from tests.support.foreign_fuzz import try_door
from tests.support.foreign_models import MODEL_DOORS, make_models


def main() -> int:
    """Print what became of them; returns 1 if one was neither read nor refused."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="damaged files of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder))
        for name, door in MODEL_DOORS.items():
            count = arguments.inputs // len(MODEL_DOORS)
            found = try_door(door, Path(folder), count, arguments.seed)
            read, refused = found.pop("read", 0), found.pop("refused", 0)
            print(f"{name}: {read} read, {refused} refused", flush=True)
            for line, times in found.most_common():
                print(f"  {times} x {line}")
            faults += found.total()
    print(f"{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""How far each layout's training is from that of one rank: loss and gradient norm over 5 steps.

The tiny model of the parity tests, fp32, every part trained, one seed checkpoint and one fixed
global batch with images; the greatest relative difference on any rank in any step.
"""

import os
import sys
import tempfile
from pathlib import Path

from claims import Claim, parser, report

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine's cores
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from tests.parity.layout_trace import trace, write_seed_checkpoint
from tests.parity.test_layouts import LAYOUTS
from tests.support.ranks import run_ranks


def main() -> int:
    """Measure every layout of the parity tests."""
    arguments = parser(__doc__).parse_args()
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        seed = Path(folder)
        run_ranks(1, write_seed_checkpoint, seed)
        one = run_ranks(1, trace, seed, {})[0][0]
        for name, (world_size, parallel) in LAYOUTS.items():
            traces = [mine[0] for mine in run_ranks(world_size, trace, seed, parallel)]
            for index, (what, target) in enumerate((("loss", 1e-5), ("gradient norm", 1e-4))):
                worst = max(
                    abs(mine[index] / expected[index] - 1)
                    for steps in traces
                    for mine, expected in zip(steps, one, strict=True)
                )
                claims.append(
                    Claim(
                        f"{name} on {world_size} ranks: {what}",
                        worst,
                        "",
                        target,
                        "lower",
                        "greatest relative difference from one rank, 5 steps, all ranks",
                    )
                )
    return report(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())

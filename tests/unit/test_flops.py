"""FLOPs against figures computed by hand; ``tests/parity/test_flops.py`` has torch's counter."""

import pytest

from vila_mc.config.load import load_run
from vila_mc.config.run import RunConfig
from vila_mc.topology.flops import Flops, pairs_of, step_flops
from vila_mc.topology.hardware import gpu_of_device

LAYER = 4 * 4096**2 + 3 * 4096 * 11008
MATRICES = 32 * LAYER + 32000 * 4096
TOWER_LAYER = 4 * 1024**2 + 2 * 1024 * 4096
CONNECTOR = 4 * 1024 * 4096 + 4096 * 4096


def _run(trainable: str, **options: str) -> RunConfig:
    return load_run([], {"train.trainable": trainable, **options})


def test_a_step_of_vila_7b() -> None:
    flops = step_flops(_run("[connector, language]"))
    # 6 x weights of matrices x tokens; 12 x layers x width for a pair of positions.
    assert flops.position == 6 * MATRICES
    assert flops.pair == 12 * 32 * 4096
    patches = 2 * 576 * 3 * 14 * 14 * 1024
    tower = 2 * 577 * 23 * TOWER_LAYER + 4 * 577**2 * 23 * 1024
    assert flops.image == patches + tower + 144 * 6 * CONNECTOR


def test_what_is_frozen_has_no_gradient_of_its_own() -> None:
    align, language = step_flops(_run("[connector]")), step_flops(_run("[connector, language]"))
    assert align.position == 4 * MATRICES
    assert (align.pair, align.image) == (language.pair, language.image)
    upper = step_flops(_run('["language.layers[16:]", language.head]'))
    assert upper.position == 2 * 16 * LAYER + 6 * (16 * LAYER + 32000 * 4096)
    assert upper.pair == (4 + 12) * 16 * 4096
    assert upper.image < align.image


def test_the_layout_changes_nothing() -> None:
    split = {"parallel.tensor": "4", "parallel.pipeline": "2", "train.recompute": "full"}
    assert step_flops(_run("[connector]", **split)) == step_flops(_run("[connector]"))


def test_a_packed_row_has_fewer_pairs() -> None:
    assert pairs_of(4) == 1 + 2 + 3 + 4
    assert Flops(2.0, 3.0, 5.0).of(positions=7, pairs=pairs_of(4) + pairs_of(3), images=1) == 67


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_a_peak_is_known_of_whole_gpus_alone(device: str, kind: str | None) -> None:
    found = gpu_of_device(device)
    assert (found.name if found else None) == kind

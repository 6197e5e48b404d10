"""Older releases of Transformer Engine run over the same emulated extension.

They are fetched by hand, for tests have no network:

    for v in 2.14.1 2.15.0 2.16.1 2.17.1 2.18.0 2.19.0; do
        .venv/bin/python -m pip install --no-deps --target wheels/$v transformer_engine==$v einops
    done
    VILA_MC_TE_VERSIONS=wheels bash tests/run.sh tests/te/test_versions.py
"""

import os
from pathlib import Path

import pytest

from tests.support.emulated import B200, H100, emulated
from tests.te.names import CHECKS, CHECKS_ON_BLACKWELL

NAMED = os.environ.get("VILA_MC_TE_VERSIONS")
FOLDERS = sorted(Path(NAMED).iterdir()) if NAMED else []


@pytest.mark.slow
@pytest.mark.skipif(not NAMED, reason="older wheels are fetched by hand: see the file's head")
@pytest.mark.parametrize("gpu", [(H100, CHECKS), (B200, CHECKS_ON_BLACKWELL)], ids=["H100", "B200"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_release_computes_what_it_should(
    folder: Path, gpu: tuple[tuple[int, int], tuple[str, ...]]
) -> None:
    capability, names = gpu
    with emulated(capability, folder) as calls:
        assert calls("tests.te.installed:release") == folder.name
        for name, fraction in calls("tests.te.checks:measured", names).items():
            assert fraction < 1, name

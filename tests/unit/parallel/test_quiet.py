"""Whether torch may compile is decided before Megatron-Core is imported, without asking CUDA."""

import os

import pytest

from vila_mc.parallel import quiet


@pytest.mark.parametrize(
    ("has_driver", "visible", "expected"),
    [
        (True, None, None),
        (True, "0,1", None),
        (True, "", "1"),  # a recipe's --smoke, where there are GPUs
        (True, "-1", "1"),
        (False, None, "1"),
    ],
)
def test_nothing_is_compiled_where_no_gpu_is_seen(
    has_driver: bool, visible: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os.path, "exists", lambda path: has_driver)
    monkeypatch.setattr(quiet, "refuse_what_breaks_megatron", lambda: None)
    quiet.quiet_megatron_import()
    assert os.environ.get("TORCHDYNAMO_DISABLE") == expected

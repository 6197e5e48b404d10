"""What is recorded of a run, and what is said where that is not possible."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.errors import SetupError
from vila_mc.observe.metrics import MetricsLog
from vila_mc.observe.record import ValidationRecord
from vila_mc.parallel.groups import distributed
from vila_mc.train.journal import Journal


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(train={"output": str(tmp_path)})
    record = ValidationRecord(
        step=1,
        validation_loss=1.0,
        validation_tokens=1,
        validation_loss_by_entry=[],
        validation_ms=1.0,
    )

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a file that is open says it

    monkeypatch.setattr(MetricsLog, "write_validation", full)
    data: Any = SimpleNamespace(microbatches=())
    with distributed(config.parallel, seed=1) as ranks:
        journal = Journal(config, ranks, data, 0)
        with pytest.raises(SetupError, match=f"no space left in {tmp_path}.*the run resumes"):
            journal.write_validation(record)
        journal.close()

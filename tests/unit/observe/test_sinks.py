"""Every record of a run goes to every sink."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.run import RunConfig
from vila_mc.observe import sinks
from vila_mc.observe.record import Event, StartRecord, StepRecord, ValidationRecord


class _Kept:
    def __init__(self, config: RunConfig, after_step: int) -> None:
        self.label, self.after_step = config.train.phase, after_step
        self.records: list[StartRecord | StepRecord | ValidationRecord | Event | None] = []

    def start(self, record: StartRecord) -> None:
        self.records.append(record)

    def write(self, record: StepRecord) -> None:
        self.records.append(record)

    def write_validation(self, record: ValidationRecord) -> None:
        self.records.append(record)

    def write_event(self, event: Event) -> None:
        self.records.append(event)

    def close(self) -> None:
        self.records.append(None)


def test_a_sink_is_one_line_of_the_register(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sinks, "SINKS", (*sinks.SINKS, _Kept))
    opened: list[Any] = sinks.open_sinks(tiny_run(train={"output": str(tmp_path)}), 7)
    assert len(opened) == 3
    assert (opened[-1].label, opened[-1].after_step) == ("pretrain", 7)
    for sink in opened:
        sink.close()
    assert opened[-1].records == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]

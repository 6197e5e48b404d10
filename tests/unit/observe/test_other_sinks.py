"""What TensorBoard and Weights & Biases are given, and what is refused without them."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.records import start_record, step_record
from tests.support.tiny import tiny_run
from vila_mc.errors import SetupError
from vila_mc.observe.record import Event, ValidationRecord, numbers_of
from vila_mc.observe.sinks import open_sinks, require_packages
from vila_mc.observe.tensorboard import TENSORBOARD_NAME, TensorBoardLog
from vila_mc.observe.weights_and_biases import ID_NAME, WandbLog

VALIDATION = ValidationRecord(
    step=2,
    validation_loss=1.5,
    validation_tokens=7,
    validation_loss_by_entry=[1.5],
    validation_ms=3.0,
)
EVENT = Event(step=3, event="loss", message="loss 9 is high", value=9.0, usual=2.0)


def test_figures_have_the_names_of_the_record() -> None:
    figures = numbers_of(step_record(3, skipped=True, mfu=None))
    assert (figures["step"], figures["loss"], figures["skipped"]) == (3, 2.18341, 1)
    assert figures["loss_by_entry/0"] == 0.5
    assert not {"mfu", "loss_by_entry", "loss_by_entry/1"} & set(figures)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_refused_in_one_line(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vila_mc.observe.sinks.find_spec", lambda _: None)
    value = True if package == "tensorboard" else "vila"
    config = tiny_run(train={package: value, "output": str(tmp_path)})
    for refuse in (require_packages, lambda config: open_sinks(config, 0)):
        with pytest.raises(SetupError, match=rf"^train\.{package} needs the package .*observe"):
            refuse(config)
    require_packages(tiny_run())
    assert not list(tmp_path.iterdir())


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs vila_mc[observe]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    died, again, resumed = (0, (1, 2, 3)), (0, (1, 2, 3)), (1, (2,))
    for after_step, steps in (died, again, resumed):
        log = TensorBoardLog(tmp_path, after_step)
        log.start(start_record(step=after_step))
        for step in steps:
            log.write(step_record(step, loss=float(10 * after_step + step)))
        log.write_validation(VALIDATION)
        log.write_event(EVENT)
        log.close()
    read = EventAccumulator(str(tmp_path / TENSORBOARD_NAME)).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 12.0)]
    tags = {f"train/{name}" for name in numbers_of(step_record())} - {"train/step"}
    assert tags <= set(read.Tags()["scalars"])
    assert read.Scalars("validation/validation_loss")[-1].value == 1.5
    (event, *_) = read.Tensors("events/loss/text_summary")
    assert event.step == 3
    assert b"loss 9 is high" in event.tensor_proto.string_val[0]
    (text, *_) = read.Tensors("run/text_summary")
    assert b"84db454" in text.tensor_proto.string_val[0]


class _PlayedRun:
    """What of a run of W&B is used."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.id = given, given["id"] or "abc123"
        self.logged: list[dict[str, float]] = []
        self.facts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.is_finished = False
        self.config = SimpleNamespace(
            update=lambda facts, allow_val_change: self.facts.update(facts)
        )

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics[name] = options

    def log(self, figures: dict[str, float]) -> None:
        self.logged.append(figures)

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in place of ``wandb`` that remembers its runs."""

    class Error(Exception):
        """As ``wandb.errors.Error``."""

    module: Any = SimpleNamespace(errors=SimpleNamespace(Error=Error), runs=[], fails=False)
    module.__spec__ = "there is one"

    def init(**given: Any) -> _PlayedRun:
        if module.fails:
            raise Error("api_key not configured\n")
        module.runs.append(_PlayedRun(given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_goes_on_with_the_same_run(played: Any, tmp_path: Path) -> None:
    for step in (1, 2):
        log = WandbLog("vila", tmp_path, "sft")
        log.start(start_record(step=step - 1))
        log.write(step_record(step))
        log.write_validation(VALIDATION)
        log.write_event(EVENT)
        log.close()
    first, second = played.runs
    assert (first.given["id"], second.given["id"]) == (None, "abc123")
    assert (tmp_path / ID_NAME).read_text() == "abc123\n"
    assert second.given["resume"] == "allow"
    assert (second.given["project"], second.given["name"]) == ("vila", tmp_path.name)
    assert second.metrics == {"*": {"step_metric": "step"}}
    assert (second.facts["step"], second.is_finished) == (1, True)
    step, validation, event = second.logged
    assert event == {"step": 3, "events/loss": "loss 9 is high"}
    assert (step["step"], step["train/loss"], validation["step"]) == (2, 2.18341, 2)
    assert validation["validation/validation_loss"] == 1.5


def test_wandb_is_sent_no_step_twice(played: Any, tmp_path: Path) -> None:
    """A run dies twice, the second time before it is where it was: every step is sent once."""
    config = tiny_run(train={"wandb": "vila", "output": str(tmp_path)})
    for after_step, until in ((0, 5), (2, 3), (2, 7)):
        sinks = open_sinks(config, after_step)
        for step in range(after_step + 1, until + 1):
            for sink in sinks:
                sink.write(step_record(step))
                if step in (2, 4, 6):
                    sink.write_validation(replace(VALIDATION, step=step))
                if step in (3, 6):
                    sink.write_event(replace(EVENT, step=step))
    sent = [(figures["step"], *figures) for run in played.runs for figures in run.logged]
    steps, validations, events = (
        [step for step, *names in sent if any(name.startswith(group) for name in names)]
        for group in ("train/", "validation/", "events/")
    )
    assert (steps, validations, events) == ([1, 2, 3, 4, 5, 6, 7], [2, 4, 6], [3, 6])
    assert (tmp_path / ID_NAME).read_text() == "abc123\ntrain 5\nvalidation 4\nevents 3\n"
    (tmp_path / ID_NAME).unlink()  # a person wants another run of W&B
    open_sinks(config, 2)[1].write(step_record(3))
    assert [figures["step"] for figures in played.runs[-1].logged] == [3]


def test_wandb_that_does_not_start_is_said_in_one_line(played: Any, tmp_path: Path) -> None:
    played.fails = True
    with pytest.raises(SetupError, match=r"did not start \(api_key not configured\)\. Log in"):
        WandbLog("vila", tmp_path, "sft")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs vila_mc[observe]")
def test_wandb_offline_keeps_all_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for step in (1, 2):
        log = WandbLog("vila", tmp_path, "sft")
        log.start(start_record())
        log.write(step_record(step))
        ids.append(json.dumps(log._run.id))
        log.close()
    assert ids[0] == ids[1]
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2

"""The report of runs in a real browser: whole, quiet, readable on a phone, usable by keyboard."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PHONE, opened
from tests.support.records import start_record
from vila_mc.checkpoint.directories import checkpoint_name
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.commands.report import main
from vila_mc.config.load import run_from_dict
from vila_mc.errors import ExitCode
from vila_mc.observe.history import Ends, record_start
from vila_mc.observe.metrics import METRICS_NAME
from vila_mc.topology.layout import Layout

HOSTILE = "<img src=http:a.b onerror=alert(1)>"
"""Also a folder's name."""
MESSAGE = "</td><script>alert(2)</script>" + HOSTILE
STEPS = 700
PANELS = [
    "loss",
    "gradient norm",
    "learning rate",
    "samples/s",
    "trained tokens/s",
    "tokens/s a rank",
    "images/s",
    "TFLOP/s a rank",
    "MFU",
    "ms a step",
    "ms of waiting for data",
    "peak memory, GiB",
]
DATASETS = [f"validation loss: {name}" for name in ("<script>alert(3)<", "captions")]
TIMES = {"data_ms": 10.0, "forward_ms": 30.0, "backward_ms": 55.0, "other_ms": 5.0}
FIGURES = TIMES | {
    "samples": 8,
    "step_ms": 100.0,
    "tokens_per_second_per_rank": 500.0,
    "images_per_second": 20.0,
    "tflops_per_rank": 120.0,
    "mfu": 0.4,
    "peak_memory_gib": 61.5,
}


def _write(folder: Path, *, validates: bool) -> Path:
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        record = {"step": step, "loss": 4 / step**0.3, "grad_norm": 1 + 5 / step}
        record |= {"learning_rate": 1e-3 / step, "trained_tokens": 90 + step}
        lines.append(record | FIGURES)
        if validates and step % 100 == 0:
            each = {"validation_loss_by_entry": [2.0, 4.0]}
            lines.append({"step": step, "validation_loss": 3.0, "validation_ms": 5.0} | each)
    if validates:
        _checkpoint(folder)
        _history(folder)
        lines += [{"step": STEPS, "event": "loss", "message": MESSAGE}] * 60
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / METRICS_NAME).write_text(text + "no record\n")
    return folder


def _checkpoint(folder: Path) -> None:
    """One that names the datasets of the validation."""
    validation = [{"path": f"data/{name.removeprefix('validation loss: ')}"} for name in DATASETS]
    directory = folder / checkpoint_name(2)
    directory.mkdir()
    Manifest(
        step=2,
        samples_seen=16,
        config=run_from_dict({"data": {"validation": validation}}),
        layout=Layout(tensor=1, pipeline=1, data=1),
        versions={HOSTILE: HOSTILE},
        layers={},
    ).write(directory)


def _history(folder: Path) -> None:
    """Two starts, the second a restart after a fault."""
    what: dict[str, Any] = dict(
        device=HOSTILE, host=HOSTILE, git={"commit": HOSTILE, "is_modified": True}
    )
    for restart in (0, 1):
        place = dict(step=restart, steps=STEPS, ranks=4, time=1.8e9 + restart)
        record_start(folder, start_record(restart=restart, **place, **what))
        if not restart:
            Ends(folder).record(ExitCode.FAULT, MESSAGE)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs side by side, the first with validations and alarms, and answers."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [_write(folder / HOSTILE, validates=True), _write(folder / "other", validates=False)]
    answers = folder / f"{HOSTILE}.jsonl"
    rows = [
        {"task": task, "is_correct": right, "chance": 0.1}
        for task in (MESSAGE, "digits")
        for right in (True, True, False)
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = folder / "page.html"
    assert main([*map(str, runs), "--answers", str(answers), "--output", str(page)]) == 0
    return page


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_page_is_quiet_and_readable(
    width: int, colours: str, browser: Any, report: Path
) -> None:
    with opened(browser, report, width, colours) as page:
        page.require_quiet()
        assert page.smallest_text() >= 10
        assert page.narrowest_cell() >= 40


def test_every_figure_has_a_panel_and_every_run_a_curve(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        panels = page.page.locator("figure").evaluate_all("all => all.map(one => one.ariaLabel)")
        assert panels == PANELS + DATASETS
        assert page.count("figure > div:visible") == len(panels)
        assert page.count("[id^='curve-0-0-steps-']") == 3  # two runs, and one's validation
        for number in range(1, len(PANELS)):
            assert page.count(f"[id^='curve-0-{number}-samples-']") == 2
        assert page.texts("p.run")[0] == (
            f"{HOSTILE} {STEPS} steps, loss 3.6245 → 0.5606; a point of its curves stands for 2 "
            "steps, their least and greatest are shaded"
        )
        assert page.texts("figcaption") == [f"validation on {one[17:]}" for one in DATASETS]
        assert page.count("[id^='curve-0-12-tokens-']") == 1
        assert page.texts(".splits tbody th") == [HOSTILE, "other"]
        assert page.texts(".splits tbody td.number")[:4] == ["10.0 %", "0.0 %", "30.0 %", "55.0 %"]
        widths = page.page.locator(".split:first-child span").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().width)"
        )
        assert widths[3] / widths[2] == pytest.approx(55 / 30, rel=0.01)
        assert page.texts(".facts thead th") == ["", HOSTILE, "other"]
        facts = dict(
            zip(
                page.texts(".facts tbody th"),
                page.texts(".facts tbody td:nth-child(2)"),
                strict=True,
            )
        )
        assert facts["alarms"] == "60 loss"
        assert facts["damaged"] == "1 of the lines of its metrics are no record"
        assert facts["starts"] == "2, 1 of them by itself after a fault"
        assert facts["device"] == f"4 x {HOSTILE}, the first on {HOSTILE}"
        assert facts["code"] == f"commit {HOSTILE} with changes"
        page.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        starts = page.texts(".starts td.said")
        assert starts[0] == f"started on 4 ranks, after step 0 of {STEPS}"
        assert starts[2].startswith("ended with 1, fault, on ")
        assert starts[3] == MESSAGE
        assert starts[4] == f"restart 1 on 4 ranks, after step 1 of {STEPS}"
        assert page.count(".on-steps .alarm") == page.count("#alarm-curve-0-0-steps-0") == 1
        said = page.page.locator("#alarm-curve-0-0-steps-0 > title").text_content()
        assert said == f"60 alarms, the first: loss after step {STEPS}: {MESSAGE}"
        assert page.count(".alarms tbody tr") == 50
        assert page.texts(".alarms p") == ["The last 50 of 60."]
        assert page.texts(".alarms td.said")[0] == MESSAGE
        assert page.texts(".scores th[scope=row]") == [MESSAGE, "digits"]
        assert page.texts(".scores td b") == ["66.7 %", "66.7 %"]


def test_the_keyboard_chooses_what_curves_run_along(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.tab_to("axis-0-steps")
        for axis in ("samples", "tokens"):
            page.page.keyboard.press("ArrowRight")
            assert page.focused() == f"axis-0-{axis}"
            assert page.count(f"figure > div.on-{axis}:visible") == len(PANELS + DATASETS)
            assert page.count("figure > div:visible") == len(PANELS + DATASETS)
        page.tab_to("summary")
        page.page.keyboard.press("Enter")
        assert page.count(".alarms[open]") == 0

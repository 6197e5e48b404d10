"""The report of runs in a real browser: whole, quiet, readable on a phone, usable by keyboard."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PHONE, opened
from vila_mc.commands.report import main
from vila_mc.observe.metrics import METRICS_NAME

HOSTILE = "<img src=http:a.b onerror=alert(1)>"
"""Also a folder's name."""
MESSAGE = "</td><script>alert(2)</script>" + HOSTILE
STEPS = 700
PANELS = ["loss", "gradient norm", "learning rate", "samples/s", "trained tokens/s", "ms a step"]


def _write(folder: Path, *, validates: bool) -> Path:
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        record = {"step": step, "loss": 4 / step**0.3, "grad_norm": 1 + 5 / step, "samples": 8}
        record |= {"learning_rate": 1e-3 / step, "trained_tokens": 90 + step, "step_ms": 100.0}
        lines.append(record)
        if validates and step % 100 == 0:
            lines.append({"step": step, "validation_loss": 3.0, "validation_ms": 5.0})
    if validates:
        lines += [{"step": STEPS, "event": "loss", "message": MESSAGE}] * 60
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / METRICS_NAME).write_text(text + "no record\n")
    return folder


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
        assert panels == PANELS
        assert page.count("figure > div:visible") == len(PANELS)
        assert page.count("[id^='curve-0-0-steps-']") == 3  # two runs, and one's validation
        for number in range(1, len(PANELS)):
            assert page.count(f"[id^='curve-0-{number}-samples-']") == 2
        assert page.texts("p.run")[0] == (
            f"{HOSTILE} {STEPS} steps, loss 3.6245 → 0.5606; a point of its curves stands for 2 "
            "steps, their least and greatest are shaded"
        )
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
            assert page.count(f"figure > div.on-{axis}:visible") == len(PANELS)
            assert page.count("figure > div:visible") == len(PANELS)
        page.tab_to("summary")
        page.page.keyboard.press("Enter")
        assert page.count(".alarms[open]") == 0

"""The planner's page in a real browser: whole, quiet, readable on a phone, usable by keyboard."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PHONE, opened
from tests.support.launching import wait_until
from tests.support.rehearsal_json import rehearsal_json
from vila_mc.commands.plan_cluster import main
from vila_mc.config.load import load_run
from vila_mc.planner.constants import FITTED
from vila_mc.planner.named_layout import with_layout
from vila_mc.planner.plan import Plan, plan_of
from vila_mc.topology.hardware import GPUS

HOSTILE = "</title></td><script>alert(1)</script><img src=http://a.b/c onerror=alert(2)>"
SHOWN = 3


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The layout that is rehearsed."""
    recipe = load_run([], {"train.global_batch": "64", "model.language.layers": "4"})
    return plan_of(with_layout(recipe, "pipeline=2,recompute=full"), 8, GPUS["a100-80g"], FITTED)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> dict[str, Path]:
    """What the command has written."""
    folder = tmp_path_factory.mktemp("plan")
    files = {name: folder / f"plan.{name}" for name in ("html", "json", "trace")}
    rehearsal = folder / "rehearsal.json"
    rehearsal.write_text(json.dumps(rehearsal_json(plan, HOSTILE)))
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    recipe = ["--train.global_batch", "64", "--model.language.layers", "4"]
    asked = ["--gpus", "8", "--gpu", "a100-80g", "--price", "2", "--top", str(SHOWN), *recipe]
    assert main([*asked, "--rehearsal", str(rehearsal), *options]) == 0
    return files


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_page_is_quiet_and_readable(
    width: int, colours: str, browser: Any, files: dict[str, Path]
) -> None:
    with opened(browser, files["html"], width, colours) as page:
        page.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.require_quiet()
        assert page.smallest_text() >= 10
        assert page.narrowest_cell() >= 40
        regions = page.page.locator("[role=region]").evaluate_all(
            "all => all.map(one => one.scrollWidth > one.clientWidth)"
        )
        assert any(regions) == (width == PHONE)  # charts move inside, the page does not


def test_charts_have_a_lane_for_each_stage_and_a_box_for_each_pass(
    browser: Any, files: dict[str, Path], plan: Plan
) -> None:
    best = json.loads(files["json"].read_text())["layouts"][0]
    passes = [e for e in json.loads(files["trace"].read_text())["traceEvents"] if e["ph"] == "X"]
    stages = best["layout"]["pipeline"]
    with opened(browser, files["html"]) as page:
        assert page.count("#layouts tr") == 1 + SHOWN
        assert page.count("#timeline rect") == len(passes)
        assert page.count("#timeline rect.backward") == len(passes) / 2
        assert page.count("#timeline text") == stages + 1
        assert page.count("#busy tr") == 1 + stages
        assert page.count("#memory rect") == 6 * stages
        assert page.count("#rehearsed-memory rect") == 2 * 6 * plan.layout.pipeline
        boxes = page.page.locator("#memory rect").evaluate_all(
            "all => all.slice(0, 6).map(one => [one.x.baseVal.value, one.width.baseVal.value])"
        )
        held = best["memory_bytes_by_stage"][0]
        assert boxes[0][1] / boxes[3][1] == pytest.approx(
            held["weights"] / held["activations"], rel=0.05
        )
        for (left, width), (following, _) in pairwise(boxes):
            assert left + width == pytest.approx(following, abs=0.1)


def test_the_rehearsal_stands_beside_the_plan(
    browser: Any, files: dict[str, Path], plan: Plan
) -> None:
    with opened(browser, files["html"]) as page:
        page.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.texts("#fits") == ["not all of them fit"]
        assert "1 differ" in page.texts("#matching")[0]
        assert page.count("details.stage") == 2
        assert page.count("details.stage .tensors tr") == 2 * (1 + 12)
        assert page.count("details.stage .traffic tr") == 2 * (1 + 2)
        summaries = page.texts("details.stage summary")
        assert summaries[0].startswith("Stage 0: fits, 41.50 GiB seen and 1.00 allowed")
        assert summaries[1].startswith("Stage 1: does not fit, ")
        first = page.page.locator("details.stage .kinds").first.locator("tr").all_inner_texts()
        kind, foretold, rehearsed, ratio = first[1].split()
        held = plan.memory[0].weights / 2**30
        assert (kind, foretold, rehearsed) == ("weights", f"{held:.2f}", "4.00")
        assert ratio == f"{held / 4:.2f}"
        assert first[5].split()[2] == "3.50"  # temporary, and what a word of others names
        assert first[6].split()[2] == "41.50"
        assert HOSTILE[:20] in page.texts("details.stage .tensors td")[1]
        assert page.page.title().startswith("pretrain on 8 x A100")


def test_the_keyboard_opens_a_stage_and_moves_a_chart(browser: Any, files: dict[str, Path]) -> None:
    with opened(browser, files["html"], PHONE) as page:
        page.tab_to("timeline by stage")
        page.page.keyboard.press("ArrowRight")
        moved = "document.querySelector('#timeline').scrollLeft > 0"
        # the page forbids the eval with which wait_for_function looks a second time
        wait_until(lambda: bool(page.page.evaluate(moved)), "the chart's move")
        assert page.count("details[open]") == 1
        page.tab_to("summary")
        page.page.keyboard.press("Enter")
        assert page.count("details[open]") == 2
        assert page.count("#busy[open]") == 1

"""Tables of ablations: what they are made of, in which order it is done, and what is concluded."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ablations"))

from declared import Arm, Change, Phase, Table, read_phases, read_table, table_names
from models import RECIPES, Plan, Scale, World
from page import lines, result_of, write_result
from resources import resources
from steps import Runner, Step, StepFailedError
from verdicts import Figure, Interval, difference, interval_of, verdict

from vila_mc.config.load import load_run
from vila_mc.config.options import build
from vila_mc.errors import ConfigError, DataError

RUNS = {"this": ["steps/sft-1/run"], "that <i>": ["steps/sft-2/run"]}
PHASES = {
    "base": Phase(recipe="base", data={"text": 1}, is_shared=True),
    "align": Phase(recipe="align", data={"pairs": 1}, load="base", load_parts=("language",)),
    "pretrain": Phase(recipe="pretrain", data={"pairs": 1}, load="align"),
    "sft": Phase(recipe="sft", data={"sft": 1}, load="pretrain"),
}


def some_table(**changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "title": "A table",
        "source": "Table 0",
        "asks": "Which is better?",
        "arms": [{"name": "this", "paper": {"reads": 3.5}}, {"name": "that <i>"}],
        "measures": [{"name": "reads", "questions": ["labels"], "paper": "TextVQA"}],
        "claims": [
            {
                "says": "This is better.",
                "measure": "reads",
                "of": "this",
                "than": "that <i>",
                "relation": "higher",
            }
        ],
    }
    return values | changed


class TestTables:
    @pytest.mark.parametrize("name", table_names())
    def test_every_table_says_what_can_be_done(self, name: str) -> None:
        table, phases = read_table(name), read_phases()
        for arm in table.arms:
            chain = arm.chain(phases)
            assert chain
            assert not arm.phases.keys() - phases.keys()
            for measure in table.measures:
                assert measure.after is None or measure.after in chain

    @pytest.mark.parametrize("name", table_names())
    @pytest.mark.parametrize("is_large", [False, True])
    def test_every_option_is_one_of_training(self, name: str, is_large: bool) -> None:
        files = [RECIPES / "model.yaml", *([RECIPES / "model_gpu.yaml"] if is_large else [])]
        for arm in read_table(name).arms:
            for phase in arm.chain(read_phases(), is_large=is_large).values():
                recipes = [files[0], RECIPES / f"{phase.recipe}.yaml", *files[1:]]
                load_run(recipes, phase.options | {"data.blend": "[{path: none}]"})

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"claims": [{**some_table()["claims"][0], "of": "thus"}]}, "thus"),
            ({"claims": [{**some_table()["claims"][0], "measure": "wrote"}]}, "wrote"),
            ({"measures": [{"name": "reads"}]}, "either questions or loss"),
            ({"measures": [{"name": "a", "questions": ["b"], "loss": "c"}]}, "either questions or"),
            ({"arms": [{"name": "this"}] * 2, "claims": []}, "two arms of one name"),
            ({"arms": [{"name": "this", "paper": {"wrote": 1}}], "claims": []}, "wrote"),
            ({"arms": [{"name": "this", "colour": 1}], "claims": []}, "colour"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build(Table, some_table(**changed))

    def test_a_table_that_there_is_not(self) -> None:
        with pytest.raises(ConfigError, match="resolution"):
            read_table("resolutions")


class TestArms:
    def test_an_arm_that_changes_nothing_is_the_common_way(self) -> None:
        assert Arm(name="a").chain(PHASES) == PHASES

    def test_a_phase_that_is_left_out_is_loaded_through(self) -> None:
        chain = Arm(name="a", phases={"align": None, "pretrain": None}).chain(PHASES)
        assert list(chain) == ["base", "sft"]
        assert chain["sft"].load == "base"
        first = Arm(name="a", phases={"base": None, "align": None}).chain(PHASES)
        assert [phase.load for phase in first.values()] == [None, "pretrain"]

    def test_options_of_an_arm_do_not_reach_what_is_shared(self) -> None:
        arm = Arm(
            name="a",
            options={"model.connector.kind": "linear"},
            phases={"sft": Change(options={"model.connector.kind": "qformer"})},
        )
        chain = arm.chain(PHASES)
        assert not chain["base"].options
        assert chain["align"].options["model.connector.kind"] == "linear"
        assert chain["sft"].options["model.connector.kind"] == "qformer"

    def test_larger_models_have_options_of_their_own(self) -> None:
        sizes = {"options": {"layers": 8}, "with_gpus": {"layers": 24}}
        arm = Arm(name="a", **sizes, phases={"base": Change(**sizes)})
        for is_large, layers in ((False, 8), (True, 24)):
            chain = arm.chain(PHASES, is_large=is_large)
            assert {phase.options["layers"] for phase in chain.values()} == {layers}

    def test_other_data(self) -> None:
        chain = Arm(name="a", phases={"sft": Change(data={"sft_text": 2})}).chain(PHASES)
        assert chain["sft"].data == {"sft_text": 2}


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "world"
    (folder / "data").mkdir(parents=True)
    (folder / "questions").mkdir()
    labels = {"file": "labels.jsonl", "form": "chat", "chance": 0.25}
    (folder / "questions" / "index.json").write_text(json.dumps([labels]))
    for name in ("text", "pairs", "sft"):
        (folder / "data" / f"{name}.manifest.json").write_text("{}")
    return World.open(folder)


class TestPlans:
    @pytest.fixture(autouse=True)
    def recipes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "recipes"
        folder.mkdir()
        for name in ("model", *PHASES):
            (folder / f"{name}.yaml").write_text("")
        monkeypatch.setattr("models.RECIPES", folder)
        return folder

    def plan(self, world: World, arms: Sequence[Mapping[str, Any]], seeds: int = 2) -> Plan:
        table = build(Table, some_table(arms=arms, claims=[]))
        return Plan(table, PHASES, world, seeds, Scale())

    def kinds(self, plan: Plan) -> list[str]:
        steps = {one.digest(): one for step in plan.steps() for one in step.with_needs()}
        return sorted(step.kind for step in steps.values())

    def test_arms_share_what_they_have_in_common(self, world: World) -> None:
        late = {"name": "late", "phases": {"sft": {"options": {"train.steps": 5}}}}
        kinds = self.kinds(self.plan(world, [{"name": "a"}, late]))
        assert {kind: kinds.count(kind) for kind in kinds} == {
            "base": 1,
            "align": 2,
            "pretrain": 2,
            "sft": 4,
            "answers": 4,
        }

    def test_it_says_where_the_model_of_each_arm_is(self, world: World, tmp_path: Path) -> None:
        plan = self.plan(world, [{"name": "a"}, {"name": "b", "phases": {"sft": None}}])
        runs = plan.runs(tmp_path)
        assert [len(runs[arm]) for arm in "ab"] == [2, 2]
        trained = {
            str(one.folder(Path("."))) + "/run": one.kind
            for step in plan.steps()
            for one in step.with_needs()
        }
        kinds = {arm: [trained[run] for run in runs[arm]] for arm in runs}
        assert kinds == {"a": ["sft"] * 2, "b": ["pretrain"] * 2}

    def test_what_is_shared_has_one_seed_and_the_rest_one_each(self, world: World) -> None:
        for step in self.plan(world, [{"name": "a"}], seeds=3).steps():
            for one in step.with_needs():
                if one.kind == "base":
                    assert one.description["options"]["train.seed"] == 1
        seeds = [
            one.description["options"]["train.seed"]
            for step in self.plan(world, [{"name": "a"}], seeds=3).steps()
            for one in step.with_needs()
            if one.kind == "sft"
        ]
        assert seeds == [1, 2, 3]

    def test_an_edited_recipe_is_trained_anew(self, world: World, recipes: Path) -> None:
        before = self.plan(world, [{"name": "a"}]).steps()[0]
        (recipes / "align.yaml").write_text("train: {steps: 9}")
        after = self.plan(world, [{"name": "a"}]).steps()[0]
        assert before.digest() != after.digest()
        is_base = [one for one in after.with_needs() if one.kind == "base"]
        assert is_base == [one for one in before.with_needs() if one.kind == "base"]

    def test_training_is_told_all_of_it(self, world: World, tmp_path: Path) -> None:
        step = next(
            one
            for step in self.plan(world, [{"name": "a"}]).steps()
            for one in step.with_needs()
            if one.kind == "align"
        )
        told = step.arguments(tmp_path / "here", [tmp_path / "before"])
        options = dict(zip(told[1::2], told[2::2], strict=True))
        assert options["--train.load"] == str(tmp_path / "before" / "run")
        assert json.loads(options["--train.load_parts"]) == ["language"]
        assert json.loads(options["--data.blend"]) == [
            {"path": str(world.folder / "data" / "pairs"), "weight": 1}
        ]

    def test_a_dataset_that_the_world_has_not(self, world: World) -> None:
        arm = {"name": "a", "phases": {"sft": {"data": {"songs": 1}}}}
        with pytest.raises(DataError, match=r"no dataset songs. It has pairs, sft, text"):
            self.plan(world, [arm])

    def test_what_was_answered_becomes_a_figure(self, world: World, tmp_path: Path) -> None:
        plan = self.plan(world, [{"name": "a"}])
        for step, value in zip(plan.steps(), (25.0, 75.0), strict=True):
            folder = step.folder(tmp_path)
            folder.mkdir(parents=True)
            figures = [{"name": "accuracy", "value": value, "count": 4}]
            (folder / "result.json").write_text(json.dumps({"figures": figures}))
        assert plan.figures(tmp_path)["a"]["reads"] == [Figure(25.0, 4), Figure(75.0, 4)]
        assert plan.chances() == {"reads": 25.0}


def a_step(kind: str, code: str, needs: tuple[Step, ...] = ()) -> Step:
    """Runs ``code`` with the folders of what it needs as its arguments, in its own folder."""

    def arguments(folder: Path, of_needs: Sequence[Path]) -> list[str]:
        script = folder / "script.py"
        script.write_text(f"import os, sys, pathlib\nos.chdir({str(folder)!r})\n{code}")
        return [str(script), *map(str, of_needs)]

    return Step(kind, {"code": code}, arguments, needs)


class TestRunner:
    def run(self, output: Path, steps: Sequence[Step]) -> list[str]:
        said: list[str] = []
        Runner(output, at_once=2, threads=1, say=said.append).run(steps)
        return said

    def test_needs_come_first_and_nothing_is_done_twice(self, tmp_path: Path) -> None:
        count = "pathlib.Path('runs').open('a').write('x')\n"
        first = a_step("first", count)
        reads = "assert pathlib.Path(sys.argv[1], 'runs').exists()\n"
        followers = [a_step(name, count + reads, (first,)) for name in ("second", "third")]
        self.run(tmp_path, followers)
        said = self.run(tmp_path, followers)
        assert said == ["3 of 3 steps were done before"]
        for step in (first, *followers):
            assert (step.folder(tmp_path) / "runs").read_text() == "x"

    def test_a_failure_is_shown_and_the_rest_goes_on_the_next_time(self, tmp_path: Path) -> None:
        first = a_step("first", "")
        broken = a_step(
            "broken", "if not pathlib.Path('mended').exists(): sys.exit('no luck')\n", (first,)
        )
        with pytest.raises(StepFailedError, match="no luck"):
            self.run(tmp_path, [broken])
        assert first.is_done(tmp_path)
        assert not broken.is_done(tmp_path)
        (broken.folder(tmp_path) / "mended").touch()
        said = self.run(tmp_path, [broken])
        assert said[0] == "1 of 2 steps were done before"
        assert broken.is_done(tmp_path)

    def test_a_failure_ends_what_runs_beside_it(self, tmp_path: Path) -> None:
        """It is interrupted, as by Ctrl-C, so that training saves."""
        waits = (
            "import signal\n"
            "signal.signal(signal.SIGINT, lambda *_: (open('saved', 'w'), sys.exit(130)))\n"
            "open('waits', 'w')\nsignal.pause()\n"
        )
        beside = a_step("beside", waits)
        begun = beside.folder(tmp_path) / "waits"
        fails = f"import time\nwhile not pathlib.Path({str(begun)!r}).exists(): time.sleep(0.01)\n"
        with pytest.raises(StepFailedError, match="no luck"):
            self.run(tmp_path, [beside, a_step("broken", fails + "sys.exit('no luck')\n")])
        assert (beside.folder(tmp_path) / "saved").exists()


class TestVerdicts:
    def test_the_interval_of_three_seeds(self) -> None:
        # Student's t of two degrees of freedom, 4.3027, times the deviation 1 over the root of 3.
        found = interval_of([Figure(1.0), Figure(2.0), Figure(3.0)])
        assert found.mean == pytest.approx(2.0)
        assert found.spread == pytest.approx(4.3027 / 3**0.5, abs=1e-3)

    def test_equal_seeds_leave_the_uncertainty_of_the_questions(self) -> None:
        found = interval_of([Figure(50.0, 100)] * 3)
        assert found.spread == pytest.approx(1.96 * 5.0, abs=1e-2)

    def test_all_right_is_not_certain(self) -> None:
        assert interval_of([Figure(100.0, 50)] * 3).spread > 1

    def test_differences_are_of_seeds_in_pairs(self) -> None:
        these = [Figure(value) for value in (1.0, 5.0, 9.0)]
        those = [Figure(value) for value in (0.0, 4.0, 8.0)]
        assert difference(these, those) == Interval(1.0, 0.0)

    @pytest.mark.parametrize(
        ("low", "high", "relation", "said"),
        [
            (1, 3, "higher", "agrees"),
            (-1, 3, "higher", "not decided"),
            (-3, -1, "higher", "disagrees"),
            (-3, -1, "lower", "agrees"),
            (1, 3, "lower", "disagrees"),
            (0, 0, "higher", "not decided"),
            (-4, 4, "close", "agrees"),
            (-4, 6, "close", "not decided"),
            (6, 8, "close", "disagrees"),
            (-8, -6, "close", "disagrees"),
        ],
    )
    def test_a_claim_is_judged_by_the_interval(
        self, low: float, high: float, relation: Any, said: str
    ) -> None:
        found = Interval((low + high) / 2, (high - low) / 2)
        assert verdict(found, relation, within=5) == said


class TestPage:
    def result(self, name: str = "some") -> dict[str, Any]:
        table = build(Table, some_table())
        figures = {
            "this": {"reads": [Figure(80.0, 100), Figure(82.0, 100), Figure(81.0, 100)]},
            "that <i>": {"reads": [Figure(20.0, 100), Figure(22.0, 100), Figure(21.0, 100)]},
        }
        return result_of(name, table, figures, {"reads": 20.0}, {"seeds": "3"}, RUNS)

    def test_the_terminal_shows_ours_beside_the_papers(self) -> None:
        title, head, this, that, chance, claim = lines(self.result())
        assert title == "A table"
        assert "paper: TextVQA" in head
        assert "81.00 ± " in this
        assert this.endswith("3.5")
        assert "21.00" in that
        assert "20.00" in chance
        assert claim.startswith("agrees (+")

    def test_tables_gather_on_one_page_and_nothing_is_markup(self, tmp_path: Path) -> None:
        write_result(tmp_path, self.result())
        page = write_result(tmp_path, self.result("other")).read_text()
        assert page.count("<section id=") == 2
        assert "<i>" not in page
        assert "that &lt;i&gt;" in page
        assert page.count("<svg") == 2
        assert "agrees" in page
        assert (tmp_path / "tables" / "other.svg").read_text().startswith("<?xml")
        told = json.loads((tmp_path / "tables" / "other.json").read_text())
        assert told["arms"][0]["runs"] == ["steps/sft-1/run"]

    def test_the_planner_stands_beside_the_published_runs(self, tmp_path: Path) -> None:
        result = resources({})
        hours = {arm["name"]: arm["figures"][0] for arm in result["arms"]}
        assert hours["VILA-7B, all phases"]["paper"] == pytest.approx(5100, rel=0.01)
        assert result["claims"][0]["says"] == "VILA-7B, all phases took 5,120 GPU-hours."
        assert result["claims"][0]["verdict"] == "agrees"
        assert {claim["verdict"] for claim in result["claims"]} == {"agrees", "disagrees"}
        assert "VILA-7B sft" in write_result(tmp_path, result).read_text()

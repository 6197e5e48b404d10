"""From a table to the steps that it needs, and from what they wrote to its figures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from declared import Arm, Measure, Phase, Table
from steps import CHECKOUT, Step
from verdicts import Figure

from vila_mc.data.indexed.dataset_manifest import SUFFIX
from vila_mc.data.indexed.layout import with_suffix
from vila_mc.errors import DataError

RECIPES = CHECKOUT / "examples" / "atlas"
SHARED_SEED = 1
RESULT = "result.json"
"""In the folder of every step that measures something."""


@dataclass(frozen=True, slots=True)
class World:
    """What ``examples/atlas/build.sh`` made."""

    folder: Path
    identity: str
    """Of its contents; another world is other steps."""

    tasks: Mapping[str, Mapping[str, Any]]
    """Name of a file of questions -> what the world says of it."""

    @staticmethod
    def open(folder: Path) -> "World":
        """Raises DataError: there is none, or not a whole one."""
        index = folder / "questions" / "index.json"
        if not index.is_file():
            raise DataError(f"{folder} is no whole world: it has no questions/index.json.")
        facts = [index.read_bytes(), *(path.read_bytes() for path in _manifests(folder))]
        tasks = {Path(one["file"]).stem: one for one in json.loads(facts[0])}
        return World(folder, hashlib.sha256(b"".join(facts)).hexdigest()[:12], tasks)

    def task(self, name: str) -> Mapping[str, Any]:
        """What the world says of a file of questions. Raises DataError: there is none."""
        if name not in self.tasks:
            known = ", ".join(sorted(self.tasks))
            raise DataError(f"the world has no questions {name}. It has {known}.")
        return self.tasks[name]

    def dataset(self, name: str) -> Path:
        """Prefix of an indexed dataset. Raises DataError: there is none."""
        prefix = self.folder / "data" / name
        if not with_suffix(prefix, SUFFIX).is_file():
            known = ", ".join(path.name.removesuffix(SUFFIX) for path in _manifests(self.folder))
            raise DataError(f"the world has no dataset {name}. It has {known}.")
        return prefix


def _manifests(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob(f"*{SUFFIX}"))


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the models are and where they are trained."""

    ranks: int = 1
    recipes: tuple[str, ...] = ()
    """Files in ``examples/atlas`` that are read after the phase's own."""

    def arguments(self) -> list[str]:
        """Of a run of training."""
        files = [argument for name in self.recipes for argument in ("--config", str(_recipe(name)))]
        return ["--ranks", str(self.ranks), *files]


class Plan:
    """The steps of one table.

    Args:
        table: what is wanted.
        phases: how a model comes about.
        world: what it learns.
        seeds: how many models of each arm.
        scale: their size.
    """

    def __init__(
        self, table: Table, phases: Mapping[str, Phase], world: World, seeds: int, scale: Scale
    ) -> None:
        self.table, self.seeds = table, seeds
        self._world, self._scale = world, scale
        self._trained = {
            (arm.name, seed): self._train(arm, seed, phases)
            for arm in table.arms
            for seed in range(1, seeds + 1)
        }

    def steps(self) -> list[Step]:
        """All that must be done; what they need is needed by them."""
        return [
            step
            for arm in self.table.arms
            for seed in range(1, self.seeds + 1)
            for measure in self.table.measures
            for step in self._scored(measure, self._model(arm.name, seed, measure))
        ]

    def figures(self, output: Path) -> dict[str, dict[str, list[Figure]]]:
        """Arm -> measure -> what each seed scored, once all steps are done."""
        return {
            arm.name: {
                measure.name: [
                    _figure(
                        measure,
                        [
                            step.folder(output)
                            for step in self._scored(measure, self._model(arm.name, seed, measure))
                        ],
                    )
                    for seed in range(1, self.seeds + 1)
                ]
                for measure in self.table.measures
            }
            for arm in self.table.arms
        }

    def runs(self, output: Path) -> dict[str, list[str]]:
        """Arm -> directory of each seed's last run, below ``output``."""
        return {
            arm.name: [
                str((self._last(arm.name, seed).folder(output) / "run").relative_to(output))
                for seed in range(1, self.seeds + 1)
            ]
            for arm in self.table.arms
        }

    def chances(self) -> dict[str, float | None]:
        """Measure -> accuracy in per cent of answers that do not look; None for a loss."""
        return {
            measure.name: None
            if measure.loss
            else 100 * fmean(float(self._world.task(one)["chance"]) for one in measure.questions)
            for measure in self.table.measures
        }

    def _model(self, arm: str, seed: int, measure: Measure) -> Step:
        of_phases = self._trained[arm, seed]
        if measure.after is None:
            return self._last(arm, seed)
        if measure.after not in of_phases:
            raise DataError(
                f"measure {measure.name} is after {measure.after}, which {arm} has not."
            )
        return of_phases[measure.after]

    def _last(self, arm: str, seed: int) -> Step:
        return next(reversed(self._trained[arm, seed].values()))

    def _train(self, arm: Arm, seed: int, phases: Mapping[str, Phase]) -> dict[str, Step]:
        trained: dict[str, Step] = {}
        for name, phase in arm.chain(phases, is_large=bool(self._scale.recipes)).items():
            before = trained[phase.load] if phase.load is not None else None
            trained[name] = self._training(name, phase, before, seed)
        return trained

    def _training(self, name: str, phase: Phase, before: Step | None, seed: int) -> Step:
        files = [_recipe("model"), _recipe(phase.recipe)]
        seed = SHARED_SEED if phase.is_shared else seed
        options = phase.options | {"train.seed": seed}
        blend = [
            {"path": str(self._world.dataset(one).resolve()), "weight": weight}
            for one, weight in phase.data.items()
        ]

        def arguments(folder: Path, needs: Sequence[Path]) -> list[str]:
            loaded = ["--train.load", str(needs[0] / "run")] if needs else []
            if needs and phase.load_parts:
                loaded += ["--train.load_parts", json.dumps(phase.load_parts)]
            configs = [argument for file in files for argument in ("--config", str(file))]
            return [
                "tools/train.py",
                *configs,
                *self._scale.arguments(),
                *("--data.blend", json.dumps(blend)),
                *("--data.tokenizer", str((self._world.folder / "tokenizer.model").resolve())),
                *("--train.output", str(folder / "run")),
                *loaded,
                *(part for key, value in options.items() for part in (f"--{key}", _word(value))),
            ]

        description = {
            "recipes": [_contents(file) for file in (*files, *map(_recipe, self._scale.recipes))],
            "data": phase.data,
            "load_parts": phase.load_parts,
            "options": options,
            "world": self._world.identity,
        }
        return Step(name, description, arguments, (before,) if before is not None else ())

    def _scored(self, measure: Measure, model: Step) -> list[Step]:
        if measure.loss is not None:
            return [self._loss(measure.loss, model)]
        return [self._answers(name, measure.shots, model) for name in measure.questions]

    def _loss(self, dataset: str, model: Step) -> Step:
        prefix = self._world.dataset(dataset)

        def arguments(folder: Path, needs: Sequence[Path]) -> list[str]:
            return [
                "tools/evaluate.py",
                *("--checkpoint", str(needs[0] / "run"), "--loss", "--datasets", str(prefix)),
                *("--output", str(folder / RESULT)),
            ]

        return Step(
            "loss", {"dataset": dataset, "world": self._world.identity}, arguments, (model,)
        )

    def _answers(self, name: str, shots: int, model: Step) -> Step:
        task = self._world.task(name)

        def arguments(folder: Path, needs: Sequence[Path]) -> list[str]:
            return [
                "tools/evaluate.py",
                *("--checkpoint", str(needs[0] / "run")),
                *("--task", str(self._world.folder / "questions" / str(task["file"]))),
                *("--images", str(self._world.folder / "pictures"), "--form", str(task["form"])),
                *(("--weigh", str(task["weighed"])) if "weighed" in task else ()),
                *(("--shots", str(shots)) if shots else ()),
                *("--output", str(folder / "answers.jsonl"), "--figures", str(folder / RESULT)),
            ]

        description = {"questions": name, "shots": shots, "world": self._world.identity}
        return Step("answers", description, arguments, (model,))


def _figure(measure: Measure, folders: Sequence[Path]) -> Figure:
    """What the steps of one model wrote. Accuracies of several files are averaged, not pooled."""
    results = [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
    if measure.loss is not None:
        return Figure(float(results[0]["validation_loss"]))
    accuracies = [result["figures"][0] for result in results]
    mean = sum(float(one["value"]) for one in accuracies) / len(accuracies)
    return Figure(mean, sum(int(one["count"]) for one in accuracies))


def _recipe(name: str) -> Path:
    return RECIPES / f"{name}.yaml"


def _contents(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""What a table of ablations is: arms, what is measured of them, and what the paper claims.

A table is a YAML file in ``tables/``; ``phases.yaml`` says how a model comes about where an arm
does not change it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vila_mc.config.checks import STRICT, require, require_known
from vila_mc.config.options import build
from vila_mc.config.recipe import read_recipe

FOLDER = Path(__file__).parent
TABLES = FOLDER / "tables"
RESOURCES = "resources"
"""The table that nothing is declared for, since nothing is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run of training on the way to a model."""

    __pydantic_config__ = STRICT

    recipe: str
    """Name of a file in ``examples/atlas``, without ``.yaml``."""
    data: dict[str, float]
    """Dataset of the world -> its weight in the blend."""
    load: str | None = None
    """The phase whose weights it starts from; None for none."""
    load_parts: tuple[str, ...] = ()
    """Parts that are loaded; empty for all. The others start anew."""
    is_shared: bool = False
    """Trained once, for all seeds and for all arms that do not change it: what the paper has from
    elsewhere, a language model and a vision tower."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of training, over the recipe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How an arm trains a phase otherwise; what is not given stays."""

    __pydantic_config__ = STRICT

    data: dict[str, float] | None = None
    load: str | None = None
    load_parts: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    with_gpus: dict[str, Any] = field(default_factory=dict)
    """Options over ``options`` where larger models are trained on GPUs."""

    def of(self, phase: Phase, general: Mapping[str, Any], *, is_large: bool = False) -> Phase:
        """The changed phase; ``general`` are the arm's options, overruled by those of a phase."""
        own = self.options | (self.with_gpus if is_large else {})
        return Phase(
            recipe=phase.recipe,
            data=phase.data if self.data is None else self.data,
            load=phase.load if self.load is None else self.load,
            load_parts=phase.load_parts if self.load_parts is None else self.load_parts,
            is_shared=phase.is_shared,
            options=phase.options | dict(general) | own,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One row of a table: a way to train a model."""

    __pydantic_config__ = STRICT

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the phases that are not shared, as those of a connector."""
    with_gpus: dict[str, Any] = field(default_factory=dict)
    """Options over ``options`` where larger models are trained on GPUs."""
    phases: dict[str, Change | None] = field(default_factory=dict)
    """Changed phases; None for one that is left out, whose followers load what it would have."""
    paper: dict[str, float] = field(default_factory=dict)
    """Measure -> figure of the paper, under the paper's own name of it in ``Measure.paper``."""

    def chain(self, phases: Mapping[str, Phase], *, is_large: bool = False) -> dict[str, Phase]:
        """The phases of this arm, in their order."""
        options = self.options | (self.with_gpus if is_large else {})
        chain: dict[str, Phase] = {}
        stands_for: dict[str | None, str | None] = {None: None}
        for name, phase in phases.items():
            change = self.phases.get(name, Change())
            if change is None:
                stands_for[name] = stands_for[phase.load]
                continue
            changed = change.of(phase, {} if phase.is_shared else options, is_large=is_large)
            chain[name] = replace(changed, load=stands_for[changed.load])
            stands_for[name] = name
        return chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One column of a table."""

    __pydantic_config__ = STRICT

    name: str
    questions: tuple[str, ...] = ()
    """Question files of the world, without ``.jsonl``; their accuracies are averaged."""
    loss: str | None = None
    """Or a dataset of the world, on which the loss is measured, in nats a token."""
    shots: int = 0
    """Demonstrations before each question."""
    after: str | None = None
    """The phase that is measured; None for the arm's last."""
    paper: str = ""
    """What the paper measured in its place."""

    def __post_init__(self) -> None:
        require(
            bool(self.questions) != bool(self.loss),
            f"measure {self.name} needs either questions or loss.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the paper says of two arms, which our figures may bear out or not."""

    __pydantic_config__ = STRICT

    says: str
    measure: str
    of: str
    """The arm that it speaks of."""
    than: str
    """The arm that it is compared with."""
    relation: Literal["higher", "lower", "close"]
    within: float = 5.0
    """``close`` alone: the greatest difference that is none, in the measure's unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the paper, or a question of its readers, as runs on a small world."""

    __pydantic_config__ = STRICT

    title: str
    source: str
    """Where its figures stand in the paper."""
    asks: str
    """The question that it answers."""
    note: str = ""
    """What is different here, for whoever compares."""
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        arms, measures = [arm.name for arm in self.arms], [one.name for one in self.measures]
        require(len({*arms}) == len(arms), f"table {self.title} has two arms of one name.")
        require(len({*measures}) == len(measures), f"{self.title}: two measures of one name.")
        for claim in self.claims:
            for arm in (claim.of, claim.than):
                require_known(f"arm of a claim of {self.title}", arm, arms)
            require_known(f"measure of a claim of {self.title}", claim.measure, measures)
        for one in self.arms:
            for measure in one.paper:
                require_known(f"figure of the paper for {one.name}", measure, measures)

    def unit(self, measure: Measure) -> str:
        """Of a measure's figures."""
        return "nats" if measure.loss else "%"


def table_names() -> list[str]:
    """Every table there is."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def read_table(name: str) -> Table:
    """The declared table. Raises ConfigError: there is none, or it says what it must not."""
    require_known("table", name, [*table_names(), RESOURCES])
    return build(Table, read_recipe(TABLES / f"{name}.yaml"))


def read_phases() -> dict[str, Phase]:
    """How a model comes about, phase after phase. Raises ConfigError."""
    raw = read_recipe(FOLDER / "phases.yaml")
    phases = {name: build(Phase, values) for name, values in raw.items()}
    for name, earlier in _with_earlier(phases):
        if phases[name].load is not None:
            require_known(f"{name}.load", str(phases[name].load), earlier)
    return phases


def _with_earlier(names: Mapping[str, Phase]) -> Iterator[tuple[str, list[str]]]:
    earlier: list[str] = []
    for name in names:
        yield name, list(earlier)
        earlier.append(name)

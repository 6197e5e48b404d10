"""From YAML files and ``--section.field value`` overrides to one validated ``RunConfig``.

Later files win over earlier ones, and the command line over files. Every option is one leaf of
``RunConfig``; its help text is the docstring under the field.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vila_mc.config.checks import require
from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.data import BlendEntry
from vila_mc.config.model import ModelConfig
from vila_mc.config.options import build, field_docs, help_text, leaf_options, type_name
from vila_mc.config.recipe import PRESETS, parse_yaml, read_recipe
from vila_mc.config.run import RunConfig
from vila_mc.config.values import from_text, is_yaml
from vila_mc.errors import ConfigError


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and one ``--section.field`` per leaf of ``RunConfig``."""
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help=f"YAML recipe, or {', '.join(f'preset:{name}' for name in PRESETS)}, which come with "
        "the package, or preset:NAME of a published model or a part of one, such as preset:vila-7b "
        "or preset:qwen3-8b (train --presets lists them); may be given several times, later files "
        "win. Without any, the model is VILA-7B",
    )
    for section in dataclasses.fields(RunConfig):
        group = parser.add_argument_group(section.name, field_docs(RunConfig)[section.name])
        for name, field, doc in leaf_options(section.default, section.name):
            group.add_argument(
                f"--{name}",
                dest=name,
                default=argparse.SUPPRESS,
                metavar=type_name(field.type),
                help=help_text(doc, field.default),
            )


def load_run(files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Merge recipes and dotted overrides into a ``RunConfig``.

    Args:
        files: YAML recipes, or ``preset:NAME``; later ones win.
        overrides: ``{"train.steps": value}``; strings are taken as they are, except
            that an option that holds a list takes YAML, and ``none`` is nothing where that is
            allowed.

    Raises:
        ConfigError: a file cannot be read, an option does not exist, or a value is not allowed.
    """
    merged: dict[str, Any] = {}
    words: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        _merge(words, _nest(name.split("."), _read_word(name, value)))
    for values in (*map(read_recipe, files), words):
        _merge(merged, values)
        _let_the_later_count(merged, values)
    return run_from_dict(merged)


def load_run_from_args(parsed: argparse.Namespace) -> RunConfig:
    """The ``RunConfig`` that a parser with ``add_config_options`` has read."""
    return load_run(parsed.config, dotted_options(parsed))


def dotted_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of a recipe among those of a command line, for ``load_run``."""
    return {name: value for name, value in vars(parsed).items() if "." in name}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ModelAlone:
    """The part of a run that says what its model is."""

    model: ModelConfig = ModelConfig()


def load_model(files: Sequence[Path]) -> ModelConfig:
    """The model that recipes describe, whatever else of a run they leave open.

    Args:
        files: YAML recipes; later ones win.

    Raises:
        ConfigError: a file cannot be read, or its section ``model`` is wrong.
    """
    merged: dict[str, Any] = {}
    for values in map(read_recipe, files):
        _merge(merged, values)
    alone = {"model": merged.get("model", {})}
    return build(_ModelAlone, alone, known=_names_beside).model


def connector_from_text(text: str) -> ConnectorConfig:
    """A connector written as its kind, or as YAML: ``{kind: pooling, side: 8}``.

    Raises:
        ConfigError: it is not valid YAML, an option does not exist, or a value is not allowed.
    """
    try:
        given = parse_yaml(text)
    except ValueError:
        given = None
    values = {"kind": given} if isinstance(given, str) else given
    require(
        isinstance(values, dict),
        f"connector is {text}; give a kind, or its options such as {{kind: pooling, side: 8}}.",
    )
    known = [field.name for field in dataclasses.fields(ConnectorConfig)]
    return build(ConnectorConfig, values, "model.connector.{}".format, lambda _: known)


def run_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Build a ``RunConfig`` from plain values. Raises ConfigError."""
    return build(RunConfig, values, known=_names_beside)


def run_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values for YAML and JSON; ``run_from_dict`` reads them back."""
    plain: dict[str, Any] = TypeAdapter(RunConfig).dump_python(config, mode="json")
    return plain


def _read_word(name: str, value: Any) -> Any:
    """What a word on the command line stands for, by the type of its option."""
    kind = _kinds().get(name)
    if not isinstance(value, str):
        return value
    if kind is not None and not is_yaml(kind):
        return from_text(kind, value)
    try:
        return parse_yaml(value)
    except ValueError:
        raise ConfigError(
            f"{name} is {value}, which is not valid YAML. Put double quotes around text that "
            """holds ' " # , : or brackets, as in [{path: "/data/it's"}]."""
        ) from None


def _let_the_later_count(merged: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Where steps and epochs say the same in different words, drop the one given earlier."""
    later = values.get("train")
    for given, dropped in (("steps", "epochs"), ("epochs", "steps")):
        if isinstance(later, dict) and later.get(given) is not None and dropped not in later:
            merged["train"].pop(dropped, None)


def _nest(names: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    return value  # type: ignore[no-any-return]


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _names_beside(name: str) -> list[str]:
    """The names that could be meant by ``name``: every option and section, or those of an entry."""
    within = name.rpartition(".")[0]
    if within.rpartition(".")[2].isdecimal():  # of data.blend, the one list of mappings
        return [f"{within}.{field.name}" for field in dataclasses.fields(BlendEntry)]
    names: list[str] = []
    for leaf in _kinds():
        steps = leaf.split(".")
        names += [".".join(steps[:depth]) for depth in range(1, len(steps) + 1)]
    return list(dict.fromkeys(names))


def _kinds() -> dict[str, Any]:
    """Type of every option, by its dotted name."""
    return {
        name: field.type
        for section in dataclasses.fields(RunConfig)
        for name, field, _ in leaf_options(section.default, section.name)
    }

"""From YAML files and ``--section.field value`` overrides to one validated ``RunConfig``.

Later files win over earlier ones, and the command line over files. Every option is one leaf of
``RunConfig``; its help text is the docstring under the field.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from vila_mc.config.data import BlendEntry
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError


class ErrorRaisingParser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one-line ``ConfigError``s, with a suggestion."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. Run with --help to see every option.")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse; an option that does not exist names the nearest one that does."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option.lstrip("-") for option in self._option_string_actions]
            raise ConfigError(unknown_option(unknown[0].split("=")[0].lstrip("-"), known))
        return parsed


def unknown_option(given: str, known: Sequence[str]) -> str:
    """The message for an option that does not exist."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else " Run with --help to see every option."
    return f"{given} is not an option.{hint}"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and one ``--section.field`` per leaf of ``RunConfig``."""
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="YAML recipe; may be given several times, later files win",
    )
    for section in dataclasses.fields(RunConfig):
        group = parser.add_argument_group(section.name, field_docs(RunConfig)[section.name])
        for name, field, help_text in leaf_options(section.default, section.name):
            group.add_argument(
                f"--{name}",
                dest=name,
                default=argparse.SUPPRESS,
                metavar=_type_name(field.type),
                help=f"{help_text} (default: {_shown(field.default)})".replace("%", "%%"),
            )


def load_run(files: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Merge recipes and dotted overrides into a ``RunConfig``.

    Args:
        files: YAML recipes; later ones win.
        overrides: ``{"train.steps": value}``; strings are read as YAML.

    Raises:
        ConfigError: a file cannot be read, an option does not exist, or a value is not allowed.
    """
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _read_yaml(file))
    for name, value in (overrides or {}).items():
        _merge(merged, _nest(name.split("."), _parse_value(name, value)))
    return run_from_dict(merged)


def load_run_from_args(parsed: argparse.Namespace) -> RunConfig:
    """The ``RunConfig`` that a parser with ``add_config_options`` has read."""
    dotted = {name: value for name, value in vars(parsed).items() if "." in name}
    return load_run(parsed.config, dotted)


def run_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Build a ``RunConfig`` from plain values. Raises ConfigError."""
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def run_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values for YAML and JSON; ``run_from_dict`` reads them back."""
    plain: dict[str, Any] = TypeAdapter(RunConfig).dump_python(config, mode="json")
    return plain


def leaf_options(instance: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], str]]:
    """(dotted name, field, help text) of every leaf below ``instance``."""
    docs = field_docs(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        name = f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaf_options(value, name)
        else:
            yield name, field, docs[field.name]


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_field and isinstance(following, ast.Expr):
            docs[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return docs


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {file}. Check the path after --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a recipe is a YAML mapping.")
    return values


def _parse_value(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"--{name} {value!r} is not valid YAML. Quote it if it is text."
        ) from None


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


_ALLOWED = {
    "tuple_type": "give a list, such as [a, b] or, for data.blend, [{path: PREFIX}]",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
}
"""What to give instead, by pydantic's name of the mistake."""


def _explain(error: ValidationError) -> str:
    """The first complaint of pydantic as one line in our own terms."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        within = name.rpartition(".")[0]
        is_entry = within.rpartition(".")[2].isdecimal()  # of data.blend, the one list of mappings
        entry = [f"{within}.{field.name}" for field in dataclasses.fields(BlendEntry)]
        return unknown_option(name, entry if is_entry else _all_names())
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing. Give it a value."
    allowed = _ALLOWED.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
    return f"{name} is {_shown(first['input'])}; {allowed}."


def _all_names() -> list[str]:
    """Every option and every section that holds options."""
    names: list[str] = []
    for section in dataclasses.fields(RunConfig):
        for leaf, _, _ in leaf_options(section.default, section.name):
            steps = leaf.split(".")
            names += [".".join(steps[:depth]) for depth in range(1, len(steps) + 1)]
    return list(dict.fromkeys(names))


def _type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is tuple:
        return f"[{_type_name(arguments[0])},...]"
    if origin in (Union, types.UnionType):
        return "|".join(_type_name(argument) for argument in arguments)
    return "none" if kind is type(None) else str(kind.__name__).lower()


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )

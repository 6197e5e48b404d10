"""Command line options out of typed dataclasses: one field, one option.

The name, type, default and docstring of a field are the name, check, default and help text of its
option. Training's options are the leaves of ``RunConfig`` (``vila_mc.config.load``); those of every
other command are the fields of one dataclass, read by ``read_options``.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from vila_mc.config.usual_names import absent, our_value, ours
from vila_mc.config.values import kinds_of, prepare
from vila_mc.errors import ConfigError
from vila_mc.foreign_files import what_is_wrong

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
_DOCS: dict[Any, dict[str, str]] = {}
"""What is known of dataclasses already."""


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """How a field stands on the command line, as in ``Annotated[Path, Argument("DIR")]``."""

    metavar: str
    """What the help text calls its value."""
    is_positional: bool = False
    """Given by its place, without a name."""
    takes_one: bool = False
    """A tuple whose option takes one value each time it is given, so that what follows is free."""


class ErrorRaisingParser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one-line ``ConfigError``s, with a suggestion.

    An option is what it is called: argparse would take ``--train.step`` for ``--train.steps``, and
    a later option could turn that into another or none.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse with every complaint. Raises ConfigError."""
        if wrong := _NO_NUMBER.fullmatch(message):
            raise ConfigError(f"{wrong['flag']} is {wrong['given']}; give a whole number.")
        raise ConfigError(f"{message}. Run with --help to see every option.")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse; an option that does not exist names the nearest one that does.

        Raises:
            ConfigError: an option does not exist, is missing, or has no value.
        """
        try:
            parsed, unknown = self.parse_known_args(args, namespace)
        except ConfigError:
            for action in self._actions:  # a misspelt option is more than a missing one
                action.required = False
            self._refuse_unknown(self.parse_known_args(args, namespace)[1])
            raise
        self._refuse_unknown(unknown)
        return parsed

    def _refuse_unknown(self, unknown: Sequence[str]) -> None:
        if not unknown:
            return
        given = next((one for one in unknown if one.startswith("-")), None)
        if given is None:
            raise ConfigError(
                f"{unknown[0]!r} belongs to no option. Put quotes around what holds spaces, and "
                "before every other value its option; --help shows them."
            )
        known = [option.lstrip("-") for option in self._option_string_actions]
        raise ConfigError(unknown_option(given.split("=")[0].lstrip("-"), known, "--"))


def read_options[OptionsT](
    kind: type[OptionsT], arguments: Sequence[str], *, prog: str | None, description: str
) -> OptionsT:
    """The options of a command, from its arguments.

    A tuple takes any number of values (``takes_one``: one), also when its option is repeated; a
    switch that is off by default takes none. Values are text, turned into the type of the field.

    Args:
        kind: a dataclass; every field has a docstring.
        arguments: the command line after the name of the command.
        prog: the command as its user types it; None for the script that was started.
        description: what it does, for ``--help``.

    Raises:
        ConfigError: an option does not exist, is missing, or has a value that is not allowed.
    """
    parser = ErrorRaisingParser(prog=prog, description=description)
    docs = field_docs(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        _add_option(parser, field, docs[field.name])
    return build(kind, vars(parser.parse_args(arguments)), flag)


def flag(name: str) -> str:
    """What the field ``name`` is called on the command line of a command."""
    return f"--{name.replace('_', '-')}"


def build[BuiltT](
    kind: type[BuiltT],
    values: Any,
    shown_name: Callable[[str], str] = str,
    known: Callable[[str], Sequence[str]] = lambda name: (),
) -> BuiltT:
    """A dataclass from plain values, each turned into the type of its field.

    Args:
        kind: the dataclass.
        values: a mapping by the names of its fields.
        shown_name: what a user calls a field, given its dotted name.
        known: dotted names that could be meant by one that does not exist.

    Raises:
        ConfigError: a value is missing, is not allowed, or belongs to no field.
    """
    try:
        adapter: TypeAdapter[BuiltT] = _adapter(kind)
        return adapter.validate_python(prepare(kind, values, shown_name))
    except ValidationError as error:
        raise ConfigError(_explain(error, shown_name, known)) from None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The one of a dataclass: to make it takes longer than to check many values."""
    return _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))


def unknown_option(given: str, known: Sequence[str], dashes: str = "") -> str:
    """The message for an option that does not exist.

    Args:
        given: its name.
        known: those that exist.
        dashes: what stands before a name where it was given.
    """
    is_none = f"{dashes}{given} is not an option"
    if (usual := ours(given, known)) is not None:
        return f"{is_none}. Did you mean {dashes}{usual}?"
    if within := [name for name in known if name.startswith(f"{given}.")]:
        few = ", ".join(f"{dashes}{name}" for name in within[:_FEW])
        return f"{is_none}, but a section: {few}{' and others' if within[_FEW:] else ''}."
    if what := absent(given):
        return f"{is_none}: there is no {what}. Run with --help to see every option."
    nearest = max(known, key=lambda name: _likeness(given, name), default="")
    is_near = _likeness(given, nearest)[0] > _LIKE_A_TYPO
    hint = (
        f" Did you mean {dashes}{nearest}?" if is_near else " Run with --help to see every option."
    )
    return f"{is_none}.{hint}"


def _likeness(given: str, name: str) -> tuple[float, float]:
    """Of the last words, then of all: ``train.lora_rank`` and ``train.load`` share a section."""
    pairs = ((given.rpartition(".")[2], name.rpartition(".")[2]), (given, name))
    last, whole = (difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)
    return last, whole


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


def field_docs(kind: Any) -> dict[str, str]:
    """The docstring under each field of a dataclass and of its bases, as one line."""
    return _DOCS.get(kind) or _DOCS.setdefault(kind, _read_docs(kind))


def _read_docs(kind: type[Any]) -> dict[str, str]:
    docs = {}
    for owner in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            is_field = isinstance(statement, ast.AnnAssign) and isinstance(
                statement.target, ast.Name
            )
            if is_field and isinstance(following, ast.Expr):
                docs[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return docs


def help_text(doc: str, default: Any) -> str:
    """What ``--help`` says of an option: its docstring, and its default unless that says it."""
    if default is not dataclasses.MISSING and "default:" not in doc.lower():
        doc = f"{doc} (default: {shown(default)})"
    return doc.replace("%", "%%")


def type_name(kind: Any) -> str:
    """A type as the help text shows it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is tuple:
        return f"[{type_name(arguments[0])},...]"
    if origin in (Union, types.UnionType):
        return "|".join(type_name(argument) for argument in arguments)
    return "none" if kind is type(None) else str(kind.__name__).lower()


def shown(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


_NO_NUMBER = re.compile(r"argument (?P<flag>\S+): invalid int value: '(?P<given>.*)'")
"""argparse's complaint."""
_FEW = 5
"""Options of a section that a message names."""
_LIKE_A_TYPO = 0.7
"""Likeness above which one word is taken for a slip of another; difflib's own measure."""
_ALLOWED = {
    "tuple_type": "give a list, such as [a, b] or, for datasets, [{path: PREFIX}]",
    "dataclass_type": "give a mapping of options, such as {path: PREFIX} for a dataset",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "path_type": "give a path",
    "string_type": "give a text",
}
"""What to give instead, by pydantic's name of the mistake."""


def _explain(
    error: ValidationError,
    shown_name: Callable[[str], str],
    known: Callable[[str], Sequence[str]],
) -> str:
    """The first complaint of pydantic as one line in our own terms."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
        if name in known(name):  # as one dotted key
            return f"{name} is one key; in a recipe write {name.replace('.', ': {', 1)}: ...}}."
        return unknown_option(name, known(name))
    name = shown_name(name)
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing. Give it a value."
    allowed = _ALLOWED.get(first["type"]) or f"it {what_is_wrong(first)}"
    if first["type"] == "dataclass_type" and (within := _names_within(name, known(name))):
        allowed = f"give a mapping of its options: {', '.join(within)}"
    usual = our_value(name, str(first["input"])) if first["type"] == "literal_error" else None
    hint = f" Did you mean {usual}?" if usual else ""
    return f"{name} is {shown(first['input'])}; {allowed}.{hint}"


def _names_within(section: str, known: Sequence[str]) -> list[str]:
    """The last words of the names right below a section."""
    return [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]


def _add_option(parser: ErrorRaisingParser, field: dataclasses.Field[Any], doc: str) -> None:
    kinds = kinds_of(field.type)
    hints = get_args(field.type) if get_origin(field.type) is Annotated else ()
    argument = next((hint for hint in hints if isinstance(hint, Argument)), None)
    is_required = field.default is dataclasses.MISSING
    metavar = argument.metavar if argument else "N" if int in kinds else "X"
    how: dict[str, Any]
    text = help_text(doc, dataclasses.MISSING if bool in kinds else field.default)
    if argument and argument.is_positional:
        how = {} if is_required else dict(nargs="?", default=argparse.SUPPRESS)
        if any(get_origin(kind) is tuple for kind in kinds):
            how = dict(nargs="+")
        parser.add_argument(field.name, metavar=metavar, help=text, **how)
        return
    how = dict(metavar=metavar)
    if bool in kinds:
        how = dict(action="store_const", const=True)
    elif any(get_origin(kind) is tuple for kind in kinds):
        one_each = argument is not None and argument.takes_one
        how |= dict(action="append") if one_each else dict(action="extend", nargs="+")
    elif any(get_origin(kind) is Literal for kind in kinds):
        how = dict(metavar=type_name(kinds[0]))
    parser.add_argument(
        flag(field.name), default=argparse.SUPPRESS, required=is_required, help=text, **how
    )

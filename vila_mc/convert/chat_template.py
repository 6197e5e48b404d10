"""Chat templates as transformers applies them: written into exports, read from directories."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from vila_mc.checkpoint.trained_template import is_same
from vila_mc.convert.proof.packaged_code import packaged_text
from vila_mc.convert.tokenizer_source import chat_template_beside
from vila_mc.data.chat_templates import BUILT_IN, AnyTemplate, Template
from vila_mc.data.tokenizer_template import TokenizerTemplate, read_tokenizer_template
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.errors import VilaError

FILE = "chat_template.jinja"
_SYSTEM = "{system}"
_OURS = re.compile(r"\{%- set template = (\{.*\}) -%\}\n")
_NAMES = {"bos": "{bos}", "eos": "{eos}"}


def jinja_of(template: AnyTemplate) -> str:
    """The template as transformers applies it."""
    if isinstance(template, TokenizerTemplate):
        return template.text
    before, braces, after = template.first.partition(_SYSTEM)
    space = " " if template.close.endswith(" ") else ""
    texts = {
        "first": before,
        "first_after": after,
        "next": template.next,
        "close": template.close.removesuffix(" "),
        "end": template.end,
        "after": template.after,
    }
    values = {
        "system": template.system,
        "has_system": int(bool(braces)),
        "space": space,
        "is_plain": int(template.is_plain),
        **{name: _own_pieces(text, template.special) for name, text in texts.items()},
    }
    # JSON of texts, lists and numbers is an expression of Jinja, too.
    literal = json.dumps(values, ensure_ascii=False)
    return f"{{%- set template = {literal} -%}}\n{packaged_text(FILE)}"


def _own_pieces(text: str, special: Sequence[str]) -> list[tuple[str, str]]:
    """Kinds and texts: ``text``, ``token``, and ``bos`` and ``eos``, which have no text."""
    named = {"{bos}": ("bos", ""), "{eos}": ("eos", "")}
    named |= {token: ("token", token) for token in sorted(special, key=len, reverse=True)}
    parts = re.split(f"({'|'.join(map(re.escape, named))})", text)
    return [named.get(part, ("text", part)) for part in parts if part]


def published_template(directory: Path, tokenizer: Tokenizer | None) -> AnyTemplate | None:
    """The chat template that a directory of Hugging Face brings.

    Args:
        directory: where its tokenizer is.
        tokenizer: the same, opened.

    Returns:
        One of ours as it was before it was exported; else the tokenizer's own, if it can be used
        here; None without either.

    Raises:
        CheckpointError: a file is damaged.
    """
    text = chat_template_beside(directory)
    if text is None:
        return None
    ours = template_of_jinja(text)
    if ours is not None or tokenizer is None:
        return ours
    try:
        own = read_tokenizer_template(tokenizer)
        # Those of processors may want content in parts, and would drop a text.
        own.prompt([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")], ())
    except VilaError:
        return None
    return own


def template_of_jinja(text: str) -> Template | None:
    """The template that ``jinja_of`` wrote; None if that did not write ``text``."""
    found = _OURS.match(text)
    if found is None or text[found.end() :] != packaged_text(FILE):
        return None
    try:
        values = json.loads(found[1])
        texts = {
            name: "".join(_NAMES.get(kind, own) for kind, own in values[name])
            for name in ("first", "first_after", "next", "close", "end", "after")
        }
        kinds = [pair for name in texts for pair in values[name]]
        special = sorted({own for kind, own in kinds if kind == "token"})
        template = Template(
            first=texts["first"] + (_SYSTEM + texts["first_after"]) * bool(values["has_system"]),
            next=texts["next"],
            close=texts["close"] + str(values["space"]),
            system=str(values["system"]),
            end=texts["end"],
            after=texts["after"],
            is_plain=bool(values["is_plain"]),
            special=tuple(special),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return next((one for one in BUILT_IN.values() if is_same(one, template)), template)

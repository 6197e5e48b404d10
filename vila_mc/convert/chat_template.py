"""The chat template that a model was trained with, for those who use its exports."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vila_mc.checkpoint.manifest import DatasetRecord
from vila_mc.convert.proof.packaged_code import packaged_text
from vila_mc.data.chat_templates import BUILT_IN, AnyTemplate, Template, find_template
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError

FILE = "chat_template.jinja"
DEFAULT = BUILT_IN["vicuna_v1"]
"""The template of a model that was trained on no conversation."""
_PLAIN = "plain"
_SYSTEM = "{system}"


def trained_template(datasets: Sequence[DatasetRecord]) -> tuple[AnyTemplate, str]:
    """The template of most samples of some datasets, and what to say where there are several.

    ``plain``, which is for captions, counts where there is no other.

    Raises:
        CheckpointError: a dataset records a template that is none.
    """
    samples: Counter[str] = Counter()
    for record in datasets:
        if record.template is not None:
            samples[json.dumps(record.template, sort_keys=True)] += record.samples
    if len(samples) > 1:
        samples.pop(json.dumps(_PLAIN), None)
    if not samples:
        return DEFAULT, ""
    (chosen, _), *others = samples.most_common()
    note = ""
    if others:
        counts = ", ".join(f"{_shown(text)} ({count:,} samples)" for text, count in samples.items())
        note = (
            f"the datasets were made with several chat templates: {counts}. Taken is that "
            f"of most, {_shown(chosen)}."
        )
    return _template_of(json.loads(chosen)), note


def template_to_ask_with(
    name: str | None, tokenizer: Tokenizer, datasets: Sequence[DatasetRecord]
) -> tuple[AnyTemplate, str]:
    """The template that is asked for, else that of some datasets; and what to say about it.

    Args:
        name: as ``find_template`` takes it; None: as the datasets were made.
        tokenizer: what it is used with.
        datasets: what the model was trained on.

    Raises:
        ConfigError: there is no template of that name.
        CheckpointError: a dataset records a template that is none.
    """
    trained, note = trained_template(datasets)
    if name is None and not isinstance(trained, TokenizerTemplate):
        return trained, note
    chosen = find_template(name or "tokenizer", tokenizer)
    is_known = any(record.template is not None for record in datasets)
    if is_known and chosen.describe() != trained.describe():
        shown = name or f"of {tokenizer.path}"
        note = f"the template {shown} is not the one that the model was trained with"
    return chosen, note


def _shown(text: str) -> str:
    return text.strip('"') if text.startswith('"') else f"{text[:60]}..."


def _template_of(described: Any) -> AnyTemplate:
    """The inverse of ``describe``, and of a name."""
    if isinstance(described, str) and described in BUILT_IN:
        return BUILT_IN[described]  # type: ignore[index]
    if isinstance(described, dict):
        if isinstance(text := described.get("tokenizer"), str):
            return TokenizerTemplate(text, (), ())
        types = {field.name: field.type for field in dataclasses.fields(Template)}
        special = described.get("special", [])
        is_whole = {"first", "next", "close", "end"} <= described.keys() <= types.keys()
        texts = [value for key, value in described.items() if key not in ("is_plain", "special")]
        if is_whole and isinstance(special, list) and all(map(_is_text, [*texts, *special])):
            return Template(**{**described, "special": tuple(special)})
    raise CheckpointError(
        f"a dataset of this checkpoint was made with the chat template {str(described)[:60]}, "
        "which this version does not know. Export with the version that made it."
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


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

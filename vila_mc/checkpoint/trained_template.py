"""With which chat template was a model trained?"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vila_mc.checkpoint.manifest import DatasetRecord, Manifest, TemplateRecord
from vila_mc.data.chat_templates import BUILT_IN, AnyTemplate, Template, find_template
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError

DEFAULT_NAME = "vicuna_v1"
DEFAULT = BUILT_IN["vicuna_v1"]
"""The template of a model that was trained on no conversation."""
_PLAIN = "plain"


def recorded_template(
    datasets: Sequence[DatasetRecord], before: TemplateRecord | None = None
) -> tuple[TemplateRecord | None, str]:
    """What is recorded of the template of some datasets, and what to say of it.

    That of most samples; ``plain``, which is for captions, counts where there is no other.

    Args:
        datasets: what a model was trained on.
        before: template of the weights that its training began from. It counts where no dataset
            has one.

    Returns:
        None if nothing is recorded; the second is empty unless there are several.
    """
    samples: Counter[str] = Counter()
    for record in datasets:
        if record.template is not None:
            samples[json.dumps(record.template, sort_keys=True)] += record.samples
    if len(samples) > 1:
        samples.pop(json.dumps(_PLAIN), None)
    if not samples:
        return before, ""
    (chosen, _), *others = samples.most_common()
    note = ""
    if others:
        counts = ", ".join(
            f"{shown(json.loads(text))} ({count:,} samples)" for text, count in samples.items()
        )
        note = (
            f"the datasets were made with several chat templates: {counts}. Questions and exports "
            f"take that of most, {shown(json.loads(chosen))}"
        )
    return json.loads(chosen), note


def template_of(manifest: Manifest) -> TemplateRecord | None:
    """What a checkpoint records of its template; None if nothing."""
    return recorded_template(manifest.datasets, manifest.template)[0]


def another_template(manifest: Manifest, datasets: Sequence[DatasetRecord]) -> str | None:
    """One line if a run goes on from weights that learned to chat with another template.

    ``plain``, which is for captions, is another than none.

    Args:
        manifest: of the weights.
        datasets: of the run.
    """
    before, (now, _) = template_of(manifest), recorded_template(datasets)
    if before is None or now is None:
        return None
    learned, new = template_from(before), template_from(now)
    if is_same(learned, new) or any(isinstance(t, Template) and t.is_plain for t in (learned, new)):
        return None
    return (
        f"the weights learned the chat template {shown(before)}, and the datasets were made with "
        f"{shown(now)}: what the weights learned of conversations counts for little"
    )


def trained_template(
    datasets: Sequence[DatasetRecord], before: TemplateRecord | None = None
) -> tuple[AnyTemplate, str]:
    """The template of some datasets, and what to say of it, as ``recorded_template`` has it.

    Returns:
        ``DEFAULT`` where nothing is recorded.

    Raises:
        CheckpointError: a template is recorded that is none.
    """
    recorded, note = recorded_template(datasets, before)
    return (DEFAULT if recorded is None else template_from(recorded)), note


def template_to_ask_with(
    name: str | None,
    tokenizer: Tokenizer,
    datasets: Sequence[DatasetRecord],
    before: TemplateRecord | None = None,
) -> tuple[AnyTemplate, str]:
    """The template that is asked for, else that of some datasets; and what to say about it.

    Args:
        name: as ``find_template`` takes it; None: as the datasets were made.
        tokenizer: what it is used with.
        datasets: what the model was trained on.
        before: as in ``recorded_template``.

    Raises:
        ConfigError: there is no template of that name.
        CheckpointError: a template is recorded that is none.
    """
    recorded, note = recorded_template(datasets, before)
    if recorded is None:
        if name is not None:
            return find_template(name, tokenizer), ""
        unknown = "it is not recorded which chat template the model was trained with"
        untaught = "no dataset that the model was trained on has a chat template: it may not answer"
        return DEFAULT, (
            f"{untaught if datasets else unknown}. It is asked with {DEFAULT_NAME}. Name its "
            "template if that was another"
        )
    trained = template_from(recorded)
    if name is None and not isinstance(trained, TokenizerTemplate):
        return trained, note
    chosen = find_template(name or "tokenizer", tokenizer)
    if not is_same(chosen, trained):
        shown = name or f"of {tokenizer.path}"
        note = f"the template {shown} is not the one that the model was trained with"
    return chosen, note


def is_same(one: AnyTemplate, other: AnyTemplate) -> bool:
    """Whether two templates write the same; the order of their special tokens says nothing."""
    first, second = one.describe(), other.describe()
    return first | {"special": None} == second | {"special": None} and sorted(
        first.get("special", [])
    ) == sorted(second.get("special", []))


def template_from(described: Any) -> AnyTemplate:
    """The inverse of ``describe``, and of a name. Raises CheckpointError."""
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
        f"a dataset was made with the chat template {str(described)[:60]}, which this version does "
        "not know. Use the version that made it."
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def shown(recorded: TemplateRecord) -> str:
    """A recorded template for people: its name, or how it begins."""
    if isinstance(recorded, str):
        return recorded
    if isinstance(recorded.get("tokenizer"), str):
        return "tokenizer"
    try:
        template = template_from(recorded)
    except CheckpointError:
        return f"{str(recorded)[:60]}..."
    same = (name for name, built_in in BUILT_IN.items() if is_same(template, built_in))
    return next(same, f"one of its own, {str(recorded['first'])[:40]!r}...")

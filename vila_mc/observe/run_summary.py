"""What the metrics of a run say about it: how far, how fast, what it learnt, and what is odd."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vila_mc.errors import DataError
from vila_mc.foreign_files import ForeignFileError, read_foreign
from vila_mc.observe.console import clock
from vila_mc.observe.metrics import METRICS_NAME

_LARGEST_BYTES = 2**29
"""Some 2 million steps; each takes up to a kilobyte of memory."""
_LARGEST_FIGURE = 1e40
"""Above what fp32 holds, and below what sums and axes overflow at."""
_ENDS = 20
"""Parts of a run, of which the first and the last stand for its beginning and its end."""
_RISE = 1.01
"""Above the best validation loss by this factor, the last one has risen: the samples are the same
every time, so that little of it is chance."""
_MOST_NAMED = 8
_LARGEST_STEP = 2**53

Record = dict[str, Any]


def read_run(run: Path) -> list[Record]:
    """The records of a run, which may still go on, by step.

    A line that is not whole is passed over, and of a step that stands twice, the later one counts.
    Figures that are not finite, or beyond what a run computes, are None.

    Args:
        run: its output, or its metrics file.

    Raises:
        DataError: there are no metrics.
    """
    path = run / METRICS_NAME if run.is_dir() else run
    try:
        content = read_foreign(path, _LARGEST_BYTES)
    except FileNotFoundError:
        raise DataError(
            f"{run} is no run: there is no {METRICS_NAME}. Give the folder that a run writes to, "
            "or its metrics."
        ) from None
    except ForeignFileError as error:
        raise DataError(f"{path} {error}.") from None
    records: list[Record] = []
    for line in content.decode(errors="replace").split("\n"):
        record = _record(line)
        if record is None:
            continue
        is_step = "validation_loss" not in record
        while is_step and records and records[-1]["step"] >= record["step"]:
            records.pop()
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no record of a step yet.")
    return records


def _record(line: str) -> Record | None:
    """One line; None if it is not whole."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    if not 0 <= values["step"] < _LARGEST_STEP:
        return None
    return {name: _figure(value) for name, value in values.items()}


def _figure(value: Any) -> Any:
    if not isinstance(value, (bool, int, float)):
        return None
    return value if abs(value) < _LARGEST_FIGURE else None  # neither is NaN below it


def summary(records: Sequence[Record]) -> dict[str, str]:
    """The facts of a run, by name.

    Args:
        records: what ``read_run`` returns.
    """
    steps = [record for record in records if "validation_loss" not in record]
    validations = [r for r in records if r.get("validation_loss") is not None]
    validating, until = _seconds(records, "validation_ms"), records[-1]["step"]
    if not steps:  # what was recorded of them is elsewhere
        facts = {
            "steps": f"none recorded; the last validation is after step {until:,}",
            "time": f"{clock(validating)} in validation",
        }
        return facts | _losses(steps, validations)
    in_steps = _seconds(steps, "step_ms")
    facts = {"steps": f"{len(steps):,}, the last is {until:,}"}
    rates = []
    for name, said in (("samples", "samples"), ("trained_tokens", "trained tokens")):
        if any(step.get(name) is not None for step in steps):
            facts[said] = f"{(total := _total(steps, name)):,}"
            rates += [f"{total / in_steps:,.{name == 'samples':d}f} {said}/s"] if in_steps else []
    facts["time"] = f"{clock(in_steps)} in steps, {clock(validating)} in validation"
    if rates:
        facts["speed"] = ", ".join(rates)
    facts |= _losses(steps, validations)
    skipped = [record["step"] for record in steps if record.get("skipped")]
    if skipped:
        more = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
        named = ", ".join(map(str, skipped[:_MOST_NAMED]))
        facts["skipped steps"] = f"{len(skipped):,}: {named}{more} changed no weight"
    if substitutes := _total(steps, "substitutes"):
        facts["substitutes"] = f"{substitutes:,} images could not be decoded"
    return facts


def _losses(steps: Sequence[Record], validations: Sequence[Record]) -> dict[str, str]:
    losses = [(r["step"], r["loss"]) for r in steps if r.get("loss") is not None]
    facts = {}
    if losses:
        few = max(1, len(losses) // _ENDS)
        first, last = (_mean(loss for _, loss in part) for part in (losses[:few], losses[-few:]))
        of = f", means of {few:,} steps" if few > 1 else ""
        facts["loss"] = f"{first:.4f} at the beginning, {last:.4f} at the end{of}"
    elif steps:
        facts["loss"] = "of no step finite"
    if validations:
        best = min(validations, key=lambda r: r["validation_loss"])
        facts["validation loss"] = (
            f"{validations[-1]['validation_loss']:.4f} after step {validations[-1]['step']:,}, "
            f"the best {best['validation_loss']:.4f} after step {best['step']:,}"
        )
        if sign := over_fitting(losses, validations):
            facts["over-fitting"] = sign
    return facts


def over_fitting(losses: Sequence[tuple[int, float]], validations: Sequence[Record]) -> str | None:
    """One line if the validation loss has risen since its best while the training loss fell.

    Args:
        losses: step and loss.
        validations: records with a finite validation loss; at least one.
    """
    best = min(validations, key=lambda r: r["validation_loss"])
    last = validations[-1]
    if last["validation_loss"] <= _RISE * best["validation_loss"]:
        return None
    window = last["step"] - validations[-2]["step"]
    then, now = (
        [loss for step, loss in losses if end - window < step <= end]
        for end in (best["step"], last["step"])
    )
    if not then or not now or _mean(now) >= _mean(then):
        return None
    return (
        f"since step {best['step']:,} the validation loss rose from {best['validation_loss']:.4f} "
        f"to {last['validation_loss']:.4f}, while the training loss fell from {_mean(then):.4f} to "
        f"{_mean(now):.4f}"
    )


def _total(records: Sequence[Record], name: str) -> int:
    return int(sum(record.get(name) or 0 for record in records))


def _seconds(records: Sequence[Record], name: str) -> float:
    return float(sum(record.get(name) or 0 for record in records)) / 1000


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)

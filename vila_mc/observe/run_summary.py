"""What the metrics of a run say about it: how far, how fast, what it learnt, and what is odd."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vila_mc.observe.console import clock
from vila_mc.observe.run_reader import read_record
from vila_mc.observe.thinned import Record, all_steps, skipped_steps

_ENDS = 20
"""Parts of a run, of which the first and the last stand for its beginning and its end."""
_RISE = 1.01
"""Above the best validation loss by this factor, the last one has risen: the samples are the same
every time, so that little of it is chance."""
_MOST_NAMED = 8


def read_run(run: Path) -> list[Record]:
    """The records of a run, which may still go on, by step; ``run_reader`` says how they are read.

    Args:
        run: its output, or its metrics file.

    Raises:
        DataError: there are no metrics.
    """
    return read_record(run).records()


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
    facts = {"steps": f"{all_steps(steps):,}, the last is {until:,}"}
    rates = []
    for name, said in (("samples", "samples"), ("trained_tokens", "trained tokens")):
        if any(step.get(name) is not None for step in steps):
            facts[said] = f"{(total := _total(steps, name)):,}"
            rates += [f"{total / in_steps:,.{name == 'samples':d}f} {said}/s"] if in_steps else []
    facts["time"] = f"{clock(in_steps)} in steps, {clock(validating)} in validation"
    if rates:
        facts["speed"] = ", ".join(rates)
    facts |= _losses(steps, validations)
    if skipped := _total(steps, "skipped"):
        first = [number for record in steps for number in skipped_steps(record)][:_MOST_NAMED]
        more = f" and {skipped - len(first)} more" if skipped > len(first) else ""
        named = ", ".join(map(str, first))
        facts["skipped steps"] = f"{skipped:,}: {named}{more} changed no weight"
    if substitutes := _total(steps, "substitutes"):
        facts["substitutes"] = f"{substitutes:,} images could not be decoded"
    return facts


def _losses(steps: Sequence[Record], validations: Sequence[Record]) -> dict[str, str]:
    known = [step for step in steps if step.get("loss") is not None]
    losses = [(step["step"], step["loss"]) for step in known]
    facts = {}
    if losses:
        few = max(1, len(losses) // _ENDS)
        first, last = (_mean(loss for _, loss in part) for part in (losses[:few], losses[-few:]))
        in_few = all_steps(known[-few:])
        of = f", means of {in_few:,} steps" if in_few > 1 else ""
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

"""How many records may be bad, and how many were."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vila_mc.data.sources.records import LEFT_OUT, Rejected
from vila_mc.errors import ConfigError, printable

_HINTS = {
    "missing image": "The option images says where they lie. Interleaved documents can do without "
    "missing ones: skip_missing_images.",
    "not JSON": "Records are JSON objects, one a line, or in an array in a .json file.",
}
"""What to do where most records are rejected for a reason whose details do not tell."""
_EARLY = 1000
"""Records after which a run stops if more than half are rejected."""


@dataclass(frozen=True, slots=True)
class RejectionLimit:
    """How many records may be rejected: a number of them, or a share of all."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "RejectionLimit":
        """Read ``25`` or ``1%``. Raises ConfigError."""
        try:
            if text.endswith("%"):
                limit = cls(share=float(text[:-1]) / 100)
                is_valid = 0 <= limit.share <= 1  # type: ignore[operator]
            else:
                limit = cls(count=int(text))
                is_valid = limit.count >= 0  # type: ignore[operator]
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ConfigError(
                f"max_rejected is {text!r}; give a number of records such as 25, or a share of "
                "them such as 1%.",
                option="max_rejected",
            )
        return limit

    def is_exceeded(self, rejected: int, seen: int, *, is_end: bool) -> bool:
        """Whether ``rejected`` of ``seen`` records are too many."""
        if self.count is not None:
            return rejected > self.count
        assert self.share is not None
        if is_end:
            return rejected > self.share * seen
        return seen >= _EARLY and rejected > max(0.5, self.share) * seen

    def __str__(self) -> str:
        return f"{self.count}" if self.share is None else f"{100 * self.share:.6g}%"


DEFAULT_LIMIT = RejectionLimit(share=0.01)


@dataclass(slots=True)
class Tally:
    """What became of the records."""

    seen: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)
    """The first rejected record of each reason, described in one line."""
    unread_bytes: int = 0
    """Bytes of the input that were not read because of them."""
    noticed: Counter[str] = field(default_factory=Counter)
    """Samples that were kept and may not be what was meant, by what was noticed."""
    template_tokens: int = 0
    """Tokens that chat templates wrote, special tokens left out."""
    template_characters: int = 0
    """Characters of the same."""

    def reject(self, rejected: Rejected) -> None:
        """Count a rejected record."""
        self.rejected[rejected.reason] += 1
        self.unread_bytes += rejected.unread_bytes
        if rejected.reason not in self.firsts:
            self.firsts[rejected.reason] = printable(" ".join(rejected.describe().split()))

    def faults(self) -> int:
        """Rejected records that no option asks to leave out."""
        return self._faults().total()

    def _faults(self) -> Counter[str]:
        return Counter({name: n for name, n in self.rejected.items() if name not in LEFT_OUT})

    def example(self) -> str:
        """A rejected record as a sentence: the first, or the first of what most have."""
        if not self.firsts:
            return "The input holds no record."
        reasons = self._faults() or self.rejected
        reason, count = reasons.most_common(1)[0]
        first = next(name for name in self.firsts if name in reasons)
        if 2 * count <= reasons.total():
            return f"The first: {self.firsts[first].rstrip('.')}."
        before = "The first" if reason == first else f"Most are {reason!r}. The first of these"
        hint = f" {_HINTS[reason]}" if reason in _HINTS else ""
        return f"{before}: {self.firsts[reason].rstrip('.')}.{hint}"

    def to_json(self) -> dict[str, Any]:
        """The tally as a run that goes on later needs it."""
        return {
            "seen": self.seen,
            "rejected": dict(self.rejected),
            "firsts": self.firsts,
            "unread_bytes": self.unread_bytes,
            "noticed": dict(self.noticed),
            "template": [self.template_tokens, self.template_characters],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """The tally of an earlier run."""
        rejected = Counter(values["rejected"])
        noticed = Counter(values.get("noticed", {}))
        return cls(
            values["seen"],
            rejected,
            values["firsts"],
            values.get("unread_bytes", 0),
            noticed,
            *values.get("template", (0, 0)),
        )

"""What the server says, in OpenAI's form."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from vila_mc.serving.engine import Ended


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request, whole or in chunks."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, end: Ended) -> dict[str, Any]:
        """The answer at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _why(end)}
        return self._object("chat.completion", [choice]) | {"usage": _usage(end)}

    def start(self) -> bytes:
        """The event in front of the words."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def words(self, text: str) -> bytes:
        """An event with the next words."""
        return self._chunk({"content": text}, None)

    def end(self, end: Ended, *, with_usage: bool) -> bytes:
        """The events behind the words."""
        usage = self._object("chat.completion.chunk", []) | {"usage": _usage(end)}
        last = event(usage) if with_usage else b""
        return self._chunk({}, _why(end)) + last + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(values: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(values).encode() + b"\n\n"


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model, as a list of models has it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vila_mc"}


def _why(end: Ended) -> str:
    return "length" if end.is_cut else "stop"


def _usage(end: Ended) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.answer_tokens,
        "total_tokens": end.prompt_tokens + end.answer_tokens,
    }

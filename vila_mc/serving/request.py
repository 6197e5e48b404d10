"""A request for a chat completion: what is asked for, checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from vila_mc.errors import ConfigError
from vila_mc.evaluation.choice import Choice
from vila_mc.foreign_files import ForeignFileError, require_few_values
from vila_mc.serving.limits import Limits
from vila_mc.serving.messages import Said, read_messages
from vila_mc.serving.refusal import RefusedError

_READ = (
    *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "stop", "seed"),
)
_WITHOUT_EFFECT = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "top_k": (0, -1),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that would change an answer, and the values with which they do not."""
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
"""Fields that change no answer."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked for."""

    said: Said
    """The conversation that is continued."""
    choice: Choice
    max_new_tokens: int
    """Longest answer, as far as the model's positions allow."""
    stops: tuple[str, ...]
    """Texts that end it."""
    is_streamed: bool
    """Whether words are sent as they come."""
    with_usage: bool
    """Whether numbers of tokens are sent behind them."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request does not say."""

    model: str
    """The only model, by the name that it is served under."""
    choice: Choice
    """Its seed is that of the first request; each that brings none has the next."""
    max_new_tokens: int


def read_request(body: bytes, defaults: Defaults, number: int, limits: Limits) -> ChatRequest:
    """Check and read the body of a request.

    Args:
        body: JSON.
        defaults: what holds where it does not say.
        number: how many requests came before.
        limits: what it may hold.

    Raises:
        RefusedError: it is no request, or asks for what this server does not do.
    """
    values = _parsed(body, limits)
    _refuse_unknown(values)
    given = {name: value for name, value in values.items() if value is not None}
    model = given.get("model", defaults.model)
    if model != defaults.model:
        raise RefusedError(
            f"the model {str(model)[:80]!r} is not served here, {defaults.model!r} is",
            status=404,
            param="model",
            code="model_not_found",
        )
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or not options.keys() <= {"include_usage"}:
        raise RefusedError("stream_options may hold include_usage alone", param="stream_options")
    return ChatRequest(
        said=read_messages(given.get("messages"), limits),
        choice=_choice(given, defaults.choice, number),
        max_new_tokens=_max_new_tokens(given, defaults.max_new_tokens),
        stops=_stops(given.get("stop", []), limits),
        is_streamed=_switch(given.get("stream", False), "stream"),
        with_usage=_switch(options.get("include_usage") or False, "stream_options"),
    )


def _parsed(body: bytes, limits: Limits) -> Mapping[str, Any]:
    try:
        require_few_values(body, limits.json_values)
        values = json.loads(body, parse_constant=_refuse_constant)
    except ForeignFileError as error:
        raise RefusedError(f"the body {error}") from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise RefusedError("the body is no JSON object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _READ or name in _IGNORED or value is None:
            continue
        allowed = _WITHOUT_EFFECT.get(name)
        if allowed is None:
            raise RefusedError(
                f"the field {name[:80]!r} is not known here, and might matter. Leave it out",
                param=name[:80],
                code="unknown_parameter",
            )
        if value not in allowed:
            raise RefusedError(
                f"{name} is {json.dumps(value)[:80]}, which this server does not do. Leave it out",
                param=name,
                code="unsupported_value",
            )


def _choice(given: Mapping[str, Any], default: Choice, number: int) -> Choice:
    temperature = _number(given.get("temperature", default.temperature), "temperature")
    top_p = _number(given.get("top_p", default.top_p), "top_p")
    seed = given.get("seed", default.seed + number)
    if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 2**63:
        raise RefusedError("seed is no whole number of 64 bits", param="seed")
    try:
        drawn = Choice(temperature or 1.0, top_p, seed=seed)
        if temperature:
            return drawn
        return Choice(seed=seed)  # the likeliest token, which every top_p keeps
    except ConfigError as error:
        raise RefusedError(str(error), param=str(error).partition(" ")[0]) from None


def _max_new_tokens(given: Mapping[str, Any], default: int) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    counts = [given[name] for name in names]
    for name, count in zip(names, counts, strict=True):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RefusedError(f"{name} is no whole number above 0", param=name)
    if len({*counts}) > 1:
        raise RefusedError(
            "max_tokens and max_completion_tokens differ. Give one", param="max_tokens"
        )
    return counts[0] if counts else default


def _stops(given: Any, limits: Limits) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    most = limits.stop_characters
    if (
        not isinstance(stops, list)
        or len(stops) > limits.stops
        or not all(isinstance(stop, str) and 0 < len(stop) <= most for stop in stops)
    ):
        raise RefusedError(
            f"stop must be a text, or at most {limits.stops}, each of 1 to {most} characters",
            param="stop",
        )
    return tuple(stops)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RefusedError(f"{name} is no number", param=name)
    return float(value)


def _switch(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(f"{name} is neither true nor false", param=name)
    return value

"""One entry of a conversation as people write them: who speaks, what, and whether it is learned."""

from dataclasses import dataclass
from typing import Literal

from vila_mc.data.sources.records import (
    Record,
    RejectionError,
    is_given,
    refuse_other_case,
)
from vila_mc.data.turns import IMAGE_MARKER, VIDEO_MARKER, Role

SYSTEM: Literal["system"] = "system"

_ROLES: dict[str, Role | Literal["system"]] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "system": SYSTEM,
}
_IMAGE_KEYS = ("image", "url", "path", "image_url")
_IMAGE_TYPES = ("image", "image_url")
_KEYS = ("from", "role", "value", "content", "loss", "weight", "tool_calls", "function_call")
"""Of an entry."""


@dataclass(frozen=True, slots=True)
class Said:
    """An entry of a conversation."""

    role: Role | Literal["system"]
    content: object
    """A text, or a list of texts and images."""
    is_trained: bool = True


def entry_of(entry: object) -> Said:
    """The entry that a JSON value is: ``from`` or ``role``, ``value`` or ``content``.

    Raises:
        RejectionError: it is none, says nothing, or asks to be learned in part.
    """
    if not isinstance(entry, dict):
        raise RejectionError("bad conversation", f"{str(entry)[:80]} is no turn")
    refuse_other_case(entry, _KEYS)
    if is_given(entry, "tool_calls") or is_given(entry, "function_call"):
        raise RejectionError("bad conversation", "a turn calls a tool, which no template writes")
    speakers = [entry[key] for key in ("from", "role") if is_given(entry, key)]
    roles = [_ROLES.get(one.strip().lower()) if isinstance(one, str) else None for one in speakers]
    role = roles[0] if roles else None
    if role is None:
        speaker = str(speakers[0]) if speakers else "nobody"
        raise RejectionError(
            "bad conversation", f"{speaker[:40]!r} speaks, not one of {', '.join(_ROLES)}"
        )
    if roles != [role] * len(roles):
        raise RejectionError("bad conversation", "'from' and 'role' of a turn differ")
    contents = [entry[key] for key in ("value", "content") if is_given(entry, key)]
    if contents != contents[:1] * len(contents):
        raise RejectionError("bad conversation", "'value' and 'content' of a turn differ")
    content = contents[0] if contents else None
    if content is None:
        content = next((entry[key] for key in ("value", "content") if entry.get(key) == ""), None)
    if not isinstance(content, str | list):
        raise RejectionError(
            "bad conversation", f"{str(entry)[:80]} has no text under 'value' or 'content'"
        )
    return Said(role, content, _is_trained(entry, role))


def _is_trained(entry: Record, role: str) -> bool:
    """What ``loss`` (ms-swift) or ``weight`` (OpenAI) asks for."""
    for key in ("loss", "weight"):
        value = entry.get(key)
        if value is None:
            continue
        if value not in (0, 1) or (value and role not in ("assistant", SYSTEM)):
            raise RejectionError(
                "bad conversation",
                f"{key!r} is {str(value)[:20]} in a turn of {role}; an assistant's turn is learned "
                "(1, true) or not (0, false), and no other is",
            )
        if not value:
            return False
    return True


def content_text(content: object) -> str:
    """The text of a turn that shows no images. Raises RejectionError: it does."""
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    for item in content:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise RejectionError("bad conversation", "only the user may show images")
    return "".join(item["text"] for item in content)


def user_text(content: object, images: list[object]) -> str:
    """The text of a user's turn, with markers.

    Args:
        content: what the turn holds.
        images: takes what is shown, marker by marker: how it is named, or None where the turn only
            says that there is one.

    Raises:
        RejectionError: an item is neither text nor image, or a text beside them holds a marker.
    """
    if isinstance(content, str):
        images += [None] * content.count(IMAGE_MARKER)
        return content
    assert isinstance(content, list)
    text = ""
    for item in content:
        found = _image(item)
        if found is None:
            text += _text(item)
        else:
            text += IMAGE_MARKER
            images += found
    return text


def _image(item: object) -> list[object] | None:
    """How an image is named, in a list; None for what is no image."""
    if not isinstance(item, dict):
        return None
    names = [item[key] for key in _IMAGE_KEYS if is_given(item, key)]
    kind = item.get("type")
    if kind in _IMAGE_TYPES or (kind is None and names and not is_given(item, "text")):
        if len(names) > 1:
            raise RejectionError("bad conversation", f"{str(item)[:80]} names several images")
        return names or [None]
    return None


def _text(item: object) -> str:
    text = item.get("text") if isinstance(item, dict) else None
    is_text = isinstance(item, dict) and item.get("type") in ("text", None)
    if not is_text or not isinstance(text, str):
        raise RejectionError("bad conversation", f"{str(item)[:80]} is neither text nor image")
    if IMAGE_MARKER in text or VIDEO_MARKER in text:
        raise RejectionError(
            "bad conversation", "a text beside {type: image} holds a literal marker"
        )
    return text

"""How much a stranger may ask for at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request, and of all together."""

    body_bytes: int = 32 << 20
    body_seconds: float = 60.0
    """That a request may take to arrive."""
    json_values: int = 100_000
    messages: int = 256
    characters: int = 1 << 20
    """Of all texts of a request together."""
    images: int = 64
    pixels: int = 64_000_000
    """Of all images of a request together."""
    stops: int = 4
    stop_characters: int = 256
    open: int = 64
    """Requests that arrive, wait or are being answered."""
    answers: int = 16
    """That come at a time."""
    fills: int = 4
    """How often the model's positions that the answers of a time may take together; one alone is
    always answered."""
    connections: int = 256

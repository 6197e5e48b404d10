"""Every raw kind by the name it is asked for with."""

from vila_mc.data.sources.conversations import ConversationsOptions
from vila_mc.data.sources.interleaved import InterleavedOptions
from vila_mc.data.sources.options import RawOptions
from vila_mc.data.sources.pairs import PairsOptions
from vila_mc.data.sources.text import TextOptions

KINDS: dict[str, type[RawOptions]] = {
    "text": TextOptions,
    "pairs": PairsOptions,
    "interleaved": InterleavedOptions,
    "conversations": ConversationsOptions,
}

"""Datasets and tokenizers as strangers may have damaged them, before all that reads them.

Every damaged file must be read, or refused in one line; a change may leave it readable.
"""

import copy
import json
import random
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import VilaError
from vila_mc.files import sha256_of
from vila_mc.flow import EncodedSample, ImagePiece, TextPiece

_TEXT = "hello  the world \u2581\u2581 \u4f60\u597d a\0b" + " " * 60
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**32, 2**64, 1e308, float("nan"), -0.5),
    *("x", "", "<s>", "\u2581", "\ud800", "\x1b[2J\n", [], {}, [1], {"type": "x"}),
)
_NUMBERS = (0, -1, 1, 4, 2**31 - 1, -(2**31), 2**62)


@dataclass(frozen=True, slots=True)
class Door:
    """A kind of file, and what is done with it."""

    file: str
    use: Callable[[Path], object]
    damage: Callable[[random.Random, bytes], bytes]


def make_all(folder: Path) -> None:
    """One sound file of each kind."""
    sentences = [f"hello the quick brown world {number}" for number in range(100)]
    train_tokenizer(sentences, folder / "tokenizer.model", 320)
    for name, model, decoder in _libraries(sentences):
        (folder / name).mkdir()
        made = tokenizers.Tokenizer(model)
        made.decoder = decoder
        made.add_special_tokens(["<s>", "</s>"])
        made.save(str(folder / name / "tokenizer.json"))
        named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "x"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = Tokenizer(folder / "tokenizer.model")
    with IndexedWriter(folder / "set", "multimodal", tokenizer) as writer:
        for number in range(5):
            ids = np.array([1, 7, number], np.int32)
            image = ImagePiece(bytes(8), "an image")
            writer.add(EncodedSample((TextPiece(ids, False), image, TextPiece(ids, True))))
        writer.finish({"files": ["a"]})


def _libraries(sentences: list[str]) -> Iterator[tuple[str, Any, Any]]:
    models, decoders = tokenizers.models, tokenizers.decoders
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("hello", -1.0), ("h", -2.0)]
    yield "unigram", models.Unigram(pieces, 0, False), decoders.Metaspace()
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "##b": 4}
    yield "wordpiece", models.WordPiece(words, unk_token="<unk>"), decoders.WordPiece()
    letters = {text: number for number, text in enumerate(["<s>", "</s>", "a", "b", "ab"])}
    yield "bpe", models.BPE(letters, [("a", "b")]), decoders.Fuse()


def damaged_json(choose: random.Random, content: bytes) -> bytes:
    """One or two values, keys or bytes of a JSON text changed."""
    values = json.loads(content)
    for _ in range(choose.randint(1, 2)):
        *above, last = choose.choice(list(_places(values))[1:] or [("x",)])
        owner = values
        for key in above:
            owner = owner[key]
        if choose.random() < 0.8:
            owner[last] = copy.deepcopy(choose.choice(_ODD))
        elif isinstance(owner, dict):
            owner[choose.choice(["x", "type", "id"])] = owner.pop(last)
        else:
            del owner[last]
        if not isinstance(values, dict | list):
            break
    changed = json.dumps(values).encode()
    return damaged_bytes(choose, changed) if choose.random() < 0.1 else changed


def _places(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inside = values.items() if isinstance(values, dict) else enumerate(values[:9])
    for key, value in inside if isinstance(values, dict | list) else ():
        yield from _places(value if isinstance(value, dict | list) else (), (*place, key))


def damaged_bytes(choose: random.Random, content: bytes) -> bytes:
    """Some bytes or words changed, or an end cut off."""
    data = bytearray(content)
    for _ in range(choose.randint(1, 3)):
        at = choose.randrange(max(1, len(data)))
        if choose.random() < 0.5:
            data[at : at + 1] = bytes([choose.randrange(256)])
        else:
            form = choose.choice(["<q", "<i"])
            number = choose.choice(_NUMBERS) % 2 ** (8 * struct.calcsize(form) - 1)
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(data[: choose.randrange(len(data))] if choose.random() < 0.1 else data)


def _use_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(path)
    ids = tokenizer.encode(_TEXT)
    tokenizer.decode(ids)
    for token in ids[:5]:
        tokenizer.token(token)


def _use_set(prefix: Path) -> None:
    reader = IndexedReader(prefix)
    reader.sizes(np.arange(len(reader)))
    reader.token_counts()
    for index in range(len(reader)):
        reader.sample(index)


def _use_index(file: Path) -> None:
    """With a checksum that fits, as a stranger would write it."""
    manifest = file.with_name("set.manifest.json")
    values = json.loads(manifest.read_text()) | {"idx_sha256": sha256_of(file)}
    manifest.write_text(json.dumps(values))
    _use_set(file.with_suffix(""))


DOORS = {
    "SentencePiece model": Door("tokenizer.model", _use_tokenizer, damaged_bytes),
    **{
        f"tokenizer.json of {name}": Door(
            f"{name}/tokenizer.json", lambda file: _use_tokenizer(file.parent), damaged_json
        )
        for name in ("unigram", "wordpiece", "bpe")
    },
    "tokenizer_config.json": Door(
        "bpe/tokenizer_config.json", lambda file: _use_tokenizer(file.parent), damaged_json
    ),
    "manifest of a dataset": Door(
        "set.manifest.json", lambda file: _use_set(file.with_name("set")), damaged_json
    ),
    "index of a dataset": Door("set.idx", _use_index, damaged_bytes),
    "data of a dataset": Door(
        "set.bin", lambda file: _use_set(file.with_suffix("")), damaged_bytes
    ),
}


def try_door(door: Door, folder: Path, count: int, seed: int) -> Counter[str]:
    """What became of ``count`` damaged files: read, refused, or the place of a fault of ours."""
    choose = random.Random(seed)
    file = folder / door.file
    sound = {each: each.read_bytes() for each in file.parent.iterdir() if each.is_file()}
    door.use(file)
    found: Counter[str] = Counter()
    for _ in range(count):
        file.write_bytes(door.damage(choose, sound[file]))
        try:
            door.use(file)
            found["read"] += 1
        except VilaError as error:
            found["refused" if "\n" not in str(error) else f"in two lines: {error}"] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[f"{type(error).__name__} at {place.filename}:{place.lineno}: {error}"] += 1
    for each, content in sound.items():
        each.write_bytes(content)
    return found

"""A Hugging Face tokenizer.json behind the face that ``Tokenizer`` shows.

Added tokens, special or not, would be found inside a text: ``<|im_start|>`` in a web page would
become one. So all of them but runs of white space are marked special, and the library is told to
read special tokens in a text as the characters they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vila_mc.errors import DataError, SetupError


class HuggingFaceTokenizer:
    """See ``vila_mc.data.tokenizers.tokenizer.Backend``.

    BOS and EOS are those of the tokenizer_config.json (or special_tokens_map.json) beside the
    file. Where there is no BOS, as in Qwen, samples start without one.

    Args:
        file: the ``tokenizer.json``.
        content: its bytes.

    Raises:
        DataError: it is no such file, or no EOS is named beside it.
        SetupError: the tokenizers package is missing.
    """

    def __init__(self, file: Path, content: bytes) -> None:
        try:
            import tokenizers
        except ImportError:
            raise SetupError(
                f"{file} needs the tokenizers package. Run pip install 'vila_mc[hf]'."
            ) from None
        self._file = file
        self._content = content
        try:
            values = json.loads(content)
            added = values.get("added_tokens") or []
            self._added = {token["content"]: int(token["id"]) for token in added}
            for token in added:
                token["special"] = bool(token["content"].strip())
            # What would add BOS, pad or cut is ours to do.
            values |= {"post_processor": None, "padding": None, "truncation": None}
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(values))
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{file} is not a Hugging Face tokenizer: {reason}.") from None
        self._tokenizer.encode_special_tokens = True
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        spelled = {text: i for text, i in self._added.items() if text.strip()}
        self.special: Mapping[str, int] = spelled
        self._named = _named_tokens(file.parent)
        self.eos_id = self._special("EOS", self._named.get("eos_token"))
        bos = self._named.get("bos_token")
        self.bos_id: int | None = None if bos is None else self._special("BOS", bos)
        self._forbidden = np.array(sorted(self.special.values()), np.int32)
        self.adds_space = self._decode_raw(self._encode(["a"])[0]).startswith((" ", "\u2581"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Backend.encode_batch``. Raises DataError."""
        found = self._encode(texts)
        for ids in found:
            special = ids[np.isin(ids, self._forbidden)]
            if len(special):  # unigram models can spell their own special tokens
                token = self._tokenizer.id_to_token(int(special[0]))
                raise DataError(
                    f"{self._file} reads the text {token!r} as a special token. Remove it from the "
                    "text."
                )
        return found

    @cached_property
    def _as_it_is(self) -> Any:
        """The library's own reading, which finds special tokens in a text."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(self._content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """See ``Backend.encode_rendered``."""
        encoding = self._as_it_is.encode(text, add_special_tokens=False)
        places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), places

    def chat_template(self) -> tuple[str | None, dict[str, str]]:
        """See ``Backend.chat_template``. Raises DataError."""
        file = self._file.parent / "chat_template.jinja"
        try:
            return file.read_text(encoding="utf-8"), self._named
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}.") from None
        found = _read_json(self._file.parent / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several by name, as older files have them
            named = {entry["name"]: entry["template"] for entry in found if _is_named(entry)}
            found = named.get("default")
        return (found, self._named) if isinstance(found, str) else (None, self._named)

    def decode(self, ids: list[int]) -> str:
        """See ``Backend.decode``."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def token(self, token_id: int) -> str:
        """See ``Backend.token``."""
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        name = str(self._tokenizer.id_to_token(token_id))
        return f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encoded]

    def _decode_raw(self, ids: np.ndarray) -> str:
        return str(self._tokenizer.id_to_token(int(ids[0]))) if len(ids) else ""

    def _special(self, name: str, text: object) -> int:
        token_id = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        if token_id is None:
            raise DataError(
                f"{self._file} has no {name} token. Put the tokenizer_config.json that names it "
                "beside it."
            )
        return int(token_id)


def _named_tokens(folder: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read_json(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                named[key] = text
    return named


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from None
    return values if isinstance(values, dict) else {}


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("name", "template")
    )

"""A Hugging Face tokenizer.json behind the face that ``Tokenizer`` shows.

Added tokens, special or not, would be found inside a text: ``<|im_start|>`` in a web page would
become one. So all of them but runs of white space are marked special, and the library is told to
read special tokens in a text as the characters they are.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vila_mc.errors import DataError, SetupError


class HuggingFaceTokenizer:
    """See ``vila_mc.data.tokenizers.tokenizer.Backend``.

    BOS and EOS are those of the tokenizer_config.json (or special_tokens_map.json) beside the
    file. Where there is no BOS, as in Qwen, EOS takes its place, as in GPT-2.

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
        named = _named_tokens(file.parent)
        self.eos_id = self._special("EOS", named.get("eos_token"))
        bos = named.get("bos_token")
        self.bos_id = self.eos_id if bos is None else self._special("BOS", bos)
        self._forbidden = np.array(
            sorted(i for text, i in self._added.items() if text.strip()), np.int32
        )
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
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / name} cannot be read: {error}.") from None
        for key in ("bos_token", "eos_token"):
            value = values.get(key) if isinstance(values, dict) else None
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named[key] = text
    return named

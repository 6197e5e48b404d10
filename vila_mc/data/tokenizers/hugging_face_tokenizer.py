"""A Hugging Face tokenizer.json behind the face that ``Tokenizer`` shows.

Added tokens, special or not, would be found inside a text: ``<|im_start|>`` in a web page would
become one. So all of them but runs of white space are marked special, and the library is told to
read special tokens in a text as the characters they are.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vila_mc.data.tokenizers.text_growth import require_little_growth
from vila_mc.errors import DataError, SetupError
from vila_mc.foreign_files import ForeignFileError, fault_of, parse_foreign, read_foreign

_MOST_TOKENS = 2**31
"""Ids are int32 in datasets."""
_LARGEST_CONFIG = 1 << 24
"""Bytes of a file beside the tokenizer; most have some kilobytes."""
_GIVE_ANOTHER = "Give the one that belongs to the tokenizer."


class _AddedToken(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    content: str
    id: Annotated[int, Field(ge=0, lt=_MOST_TOKENS)]


_OBJECT = TypeAdapter(dict[str, Any])
_ADDED_TOKENS = TypeAdapter(list[_AddedToken])


class HuggingFaceTokenizer:
    """See ``vila_mc.data.tokenizers.tokenizer.Backend``.

    BOS and EOS are those of the tokenizer_config.json (or special_tokens_map.json) beside the
    file. Where there is no BOS, as in Qwen, samples start without one.

    Args:
        file: the ``tokenizer.json``.
        content: its bytes.

    Raises:
        DataError: it is no such file, it reads at random, or no EOS is named beside it.
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
        with _without_stderr(), _in_one_line(file):
            values = parse_foreign(content, _OBJECT)
            added = _ADDED_TOKENS.validate_python(values.get("added_tokens") or [])
            # What would add BOS, pad or cut is ours to do.
            values |= {"post_processor": None, "padding": None, "truncation": None}
            values["added_tokens"] = [
                token | {"special": bool(token["content"].strip())} for token in added
            ]
            require_little_growth(values)
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(values))
            self._tokenizer.encode_special_tokens = True
            ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
            self.vocab_size = 1 + max(ids, default=-1)
            if self.vocab_size > _MOST_TOKENS:
                raise ValueError(f"it has the token id {self.vocab_size - 1}")
            tried = self._tokenizer.encode_batch_fast(["a"], add_special_tokens=False)[0]
            self._tokenizer.decode(tried.ids)
            # The fast encoding knows ids alone.
            first = "".join(map(str, map(self._tokenizer.id_to_token, tried.ids[:1])))
            self.adds_space = first.startswith((" ", "\u2581"))
        model = values.get("model")
        if isinstance(model, dict) and model.get("dropout"):
            raise DataError(
                f"{file} has a model with dropout {model['dropout']}, which reads a text as other "
                "tokens each time. Set it to null in the file."
            )
        self.fingerprint = hashlib.sha256(content).hexdigest()
        spelled = {token["content"]: token["id"] for token in added if token["content"].strip()}
        self.special: Mapping[str, int] = spelled
        self._named = named_tokens(file.parent)
        self.eos_id = self._special("EOS", self._named.get("eos_token"))
        bos = self._named.get("bos_token")
        self.bos_id: int | None = None if bos is None else self._special("BOS", bos)
        self._forbidden = np.array(sorted(self.special.values()), np.int32)

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

        with _without_stderr(), _in_one_line(self._file):
            tokenizer = tokenizers.Tokenizer.from_str(self._content.decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        return tokenizer

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """See ``Backend.encode_rendered``."""
        with _in_one_line(self._file):
            encoding = self._as_it_is.encode(text, add_special_tokens=False)
        places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), places

    def chat_template(self) -> tuple[str | None, dict[str, str]]:
        """See ``Backend.chat_template``. Raises DataError."""
        file = self._file.parent / "chat_template.jinja"
        template = _read(file)
        if template is not None:
            try:
                return template.decode(), self._named
            except UnicodeDecodeError:
                raise DataError(f"{file} is not UTF-8 text. {_GIVE_ANOTHER}") from None
        found = _read_json(self._file.parent / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several by name, as older files have them
            named = {entry["name"]: entry["template"] for entry in found if _is_named(entry)}
            found = named.get("default")
        return (found, self._named) if isinstance(found, str) else (None, self._named)

    def decode(self, ids: list[int]) -> str:
        """See ``Backend.decode``."""
        with _in_one_line(self._file):
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """See ``Backend.token``."""
        with _in_one_line(self._file):
            text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
        name = str(self._tokenizer.id_to_token(token_id))
        return f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _in_one_line(self._file):
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encoded]

    def _special(self, name: str, text: object) -> int:
        token_id = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        if token_id is None:
            raise DataError(
                f"{self._file} has no {name} token. Put the tokenizer_config.json that names it "
                "beside it."
            )
        return int(token_id)


def named_tokens(folder: Path) -> dict[str, str]:
    """Texts of the special tokens that files beside a tokenizer name, such as ``eos_token``.

    Raises:
        DataError: a file is damaged.
    """
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read_json(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                named[key] = text
            elif key in ("bos_token", "eos_token") and value is not None:
                raise DataError(f"{folder / name} is damaged: {key} is no text. {_GIVE_ANOTHER}")
    return named


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    content = _read(file)
    try:
        return {} if content is None else parse_foreign(content, _OBJECT)
    except ForeignFileError as error:
        raise DataError(f"{file} {error}. {_GIVE_ANOTHER}") from None


def _read(file: Path) -> bytes | None:
    """What is in a file beside the tokenizer, None where there is none. Raises DataError."""
    try:
        return read_foreign(file, _LARGEST_CONFIG)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. {_GIVE_ANOTHER}") from None
    except ForeignFileError as error:
        raise DataError(f"{file} {error}. {_GIVE_ANOTHER}") from None


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("name", "template")
    )


@contextmanager
def _in_one_line(file: Path) -> Iterator[None]:
    """Say what the library says of a file as an error of the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except ValidationError as error:
        raise DataError(f"{file} is not a Hugging Face tokenizer: {fault_of(error)}.") from None
    except BaseException as error:  # plain Exception; a panic of its Rust code is not even that
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file} is not a Hugging Face tokenizer: {reason}.") from None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """A panic prints a page before Python hears of it."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)

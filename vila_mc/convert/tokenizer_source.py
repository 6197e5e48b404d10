"""The tokenizer that goes with an import or an export: what decides its ids, and nothing else."""

import shutil
from pathlib import Path
from typing import Any, Protocol

from vila_mc.convert.tokenizer_files import (
    BOS,
    EOS,
    TOKENIZER_CLASS,
    added_token,
    load_convertible,
    write_tokenizer,
    write_tokenizer_files,
)
from vila_mc.convert.weights import read_json
from vila_mc.data.tokenizers.sentencepiece_model import SentencePieceModel, read_sentencepiece
from vila_mc.errors import CheckpointError
from vila_mc.files import write_json
from vila_mc.foreign_files import ForeignFileError, read_foreign

IMAGE_TOKEN = "<image>"
_MODEL, _JSON, _CONFIG, _TEMPLATE = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_SECTIONS = ("version", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
"""Sections of a tokenizer.json that decide its ids. Some of its other keys cut or pad silently."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LONGEST_TEMPLATE = 2**20
"""Characters of a chat template."""


class TokenizerSource(Protocol):
    """Where the files of a tokenizer come from."""

    def num_tokens(self) -> int:
        """Ids in use, counted from 0."""

    def token_ids(self) -> dict[str, int | None]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``."""

    def image_token(self) -> int:
        """Id of ``<image>`` where a format needs it as a token: its own, or the next free one."""

    def write(
        self, directory: Path, max_length: int, *, processor: str | None, with_image: bool
    ) -> None:
        """Write the files.

        Args:
            directory: where to.
            max_length: longest sequence of the model.
            processor: class of the processor that the tokenizer belongs to, if any.
            with_image: whether ``<image>`` becomes a token.
        """


def open_tokenizer(path: Path, vocab_size: int) -> TokenizerSource:
    """A tokenizer to export.

    Args:
        path: a SentencePiece ``.model``, or a Hugging Face tokenizer: its folder or tokenizer.json.
        vocab_size: vocabulary of the language model.

    Raises:
        CheckpointError: there is none, it cannot be converted, or has more tokens than the model.
    """
    folder = path.parent if path.name == _JSON else path
    if not folder.is_dir():
        return _SentencePiece(path, load_convertible(path, vocab_size))
    if (folder / _JSON).exists():
        tokenizer = _Folder(folder)
        if tokenizer.num_tokens() > vocab_size:
            raise CheckpointError(
                f"the tokenizer {path} has {tokenizer.num_tokens()} tokens, but "
                f"model.language.vocab_size is {vocab_size}. Give the tokenizer of this model."
            )
        return tokenizer
    inside = folder / _MODEL
    if not inside.exists():
        raise CheckpointError(
            f"{folder} holds neither tokenizer.json nor tokenizer.model. Give a tokenizer.",
            option="tokenizer",
        )
    return _SentencePiece(inside, load_convertible(inside, vocab_size))


class _SentencePiece:
    """A ``.model`` file, converted exactly."""

    def __init__(self, path: Path, model: SentencePieceModel) -> None:
        self._path = path
        self._model = model

    def num_tokens(self) -> int:
        return len(self._model.pieces)

    def token_ids(self) -> dict[str, int | None]:
        # Padding is masked; EOS serves because Llama's tokenizer has no padding token.
        eos = self._model.special(EOS)
        return {
            "bos_token_id": self._model.special(BOS),
            "eos_token_id": eos,
            "pad_token_id": eos,
        }

    def image_token(self) -> int:
        return self.num_tokens()

    def write(
        self, directory: Path, max_length: int, *, processor: str | None, with_image: bool
    ) -> None:
        more = [added_token(self.image_token(), IMAGE_TOKEN)] if with_image else []
        write_tokenizer(self._model, directory, max_length, processor=processor, more=more)
        shutil.copyfile(self._path, directory / _MODEL)


class _Folder:
    """The tokenizer.json of a fast tokenizer; what a SentencePiece model beside it says is left.

    What is written is what decides its ids, and no key beyond: others name classes and code.
    """

    def __init__(self, folder: Path) -> None:
        content = read_json(folder / _JSON)
        try:
            self._content = {key: content.get(key) for key in _SECTIONS} | {
                "truncation": None,
                "padding": None,
                "added_tokens": [_added(entry) for entry in content.get("added_tokens") or []],
            }
            vocabulary = content["model"]["vocab"]
            added = {entry["content"]: entry["id"] for entry in self._content["added_tokens"]}
            self._ids: dict[str, int] = (vocabulary if isinstance(vocabulary, dict) else {}) | added
            self._num_tokens = 1 + max([*self._ids.values(), len(vocabulary) - 1])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(
                f"{folder / _JSON} is damaged: no vocabulary. Fetch it again."
            ) from None
        named = _named_tokens(folder)
        self._named = {key: text for key, text in named.items() if text in self._ids}

    def num_tokens(self) -> int:
        return self._num_tokens

    def token_ids(self) -> dict[str, int | None]:
        bos, eos, pad = (
            self._ids.get(self._named.get(f"{name}_token", "")) for name in ("bos", "eos", "pad")
        )
        return {
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": eos if pad is None else pad,
        }

    def image_token(self) -> int:
        return self._ids.get(IMAGE_TOKEN, self._num_tokens)

    def write(
        self, directory: Path, max_length: int, *, processor: str | None, with_image: bool
    ) -> None:
        content = dict(self._content)
        if with_image and IMAGE_TOKEN not in self._ids:
            image = added_token(self._num_tokens, IMAGE_TOKEN)
            content["added_tokens"] = [*content["added_tokens"], image]
        write_tokenizer_files(content, self._named, directory, max_length, processor=processor)


def _added(entry: dict[str, Any]) -> dict[str, Any]:
    """An added token with the keys that one has. Raises what a damaged one does."""
    if not isinstance(entry["content"], str):
        raise TypeError
    flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
    return added_token(int(entry["id"]), entry["content"]) | flags


def _named_tokens(folder: Path) -> dict[str, str]:
    """Texts of special tokens by their names, as the files beside a tokenizer have them."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", _CONFIG):
        values = read_json(folder / name) if (folder / name).exists() else {}
        for key in _NAMED:
            token = values.get(key)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                named[key] = text
    return named


def count_tokens(directory: Path, *, has_added_tokens: bool = False) -> int | None:
    """Tokens of what ``copy_tokenizer`` gives to training; None if there is no tokenizer.

    Raises:
        CheckpointError: it is damaged.
    """
    counts = _counts(directory)
    if has_added_tokens:
        return max(counts.values(), default=None)
    return counts.get(_MODEL, counts.get(_JSON))


def _counts(directory: Path) -> dict[str, int]:
    """Tokens of each tokenizer file of a directory."""
    counts = {}
    if (directory / _MODEL).exists():
        counts[_MODEL] = len(read_sentencepiece(directory / _MODEL).pieces)
    if (directory / _JSON).exists():
        counts[_JSON] = _Folder(directory).num_tokens()
    return counts


def copy_tokenizer(source: Path, target: Path, *, has_added_tokens: bool = False) -> Path | None:
    """Copy the tokenizer of a published model, and nothing else that its files hold.

    The vocabulary is copied byte for byte, so that datasets made with the published tokenizer fit.
    Of its configuration the names of special tokens and the chat template are kept.

    Args:
        source: the published directory.
        target: directory to write.
        has_added_tokens: whether a tokenizer.json with more tokens is what training takes, and not
            the SentencePiece model beside it.

    Returns:
        What training takes as ``data.tokenizer``; None if there is no tokenizer.

    Raises:
        CheckpointError: it is damaged.
    """
    names = [name for name in (_MODEL, _JSON) if (source / name).exists()]
    if not names:
        return None
    if target.resolve() != source.resolve():
        # Read first: a link to some other file is not copied.
        checks = {_MODEL: read_sentencepiece, _JSON: read_json}
        for name in names:
            checks[name](source / name)
        target.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, target / name)
        config: dict[str, Any] = {"tokenizer_class": TOKENIZER_CLASS, **_named_tokens(source)}
        template = _chat_template(source)
        if template is not None:
            config["chat_template"] = template
        write_json(target / _CONFIG, config)
    counts = _counts(source) if has_added_tokens else {}
    has_more = counts.get(_JSON, 0) > counts.get(_MODEL, 0)
    return (target / _MODEL if _MODEL in names and not has_more else target).absolute()


def _own_text(file: Path) -> str:
    """A text that is written on, so that no link may lead to a secret of whoever converts it.

    Only a download's links do not lead out: those of Hugging Face's cache, to its blobs.

    Raises:
        CheckpointError: it is such a link, or no text of a template's size.
    """
    folder = file.parent.resolve()
    if file.resolve().parent not in (folder, folder.parent.parent / "blobs"):
        raise CheckpointError(f"{file} is a link out of its folder. Copy the file there.")
    try:
        return read_foreign(file, 4 * _LONGEST_TEMPLATE).decode(errors="replace")
    except (OSError, ForeignFileError) as error:
        raise CheckpointError(f"{file} cannot be used: it {error}. Remove it.") from None


def chat_template_beside(folder: Path) -> str | None:
    """The chat template beside a tokenizer, in Jinja; of several the default one.

    Raises:
        CheckpointError: it is longer than any that is used.
    """
    template = _chat_template(folder)
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _chat_template(folder: Path) -> Any:
    """The chat template beside a tokenizer: a text, or several that have names; None without one.

    Raises:
        CheckpointError: it is longer than any that is used.
    """
    values = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}
    template = values.get("chat_template")
    if (folder / _TEMPLATE).exists():
        template = _own_text(folder / _TEMPLATE)
    if isinstance(template, list):
        template = [
            {key: entry[key] for key in ("name", "template")}
            for entry in template
            if isinstance(entry, dict)
            and all(isinstance(entry.get(key), str) for key in ("name", "template"))
        ]
    elif not isinstance(template, str):
        return None
    if len(str(template)) > _LONGEST_TEMPLATE:
        raise CheckpointError(
            f"the chat template in {folder} has more than {_LONGEST_TEMPLATE:,} characters. Remove "
            "it."
        )
    return template

"""The tokenizer that goes with an export: converted from SentencePiece, or copied as it is."""

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from vila_mc.convert.tokenizer_files import (
    BOS,
    EOS,
    added_token,
    load_convertible,
    write_tokenizer,
)
from vila_mc.convert.weights import read_json
from vila_mc.data.tokenizers.sentencepiece_model import SentencePieceModel
from vila_mc.errors import CheckpointError

IMAGE_TOKEN = "<image>"
_FOLDER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


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
    folder = path.parent if path.name == "tokenizer.json" else path
    if not folder.is_dir():
        return _SentencePiece(path, load_convertible(path, vocab_size))
    if (folder / "tokenizer.json").exists():
        tokenizer = _Folder(folder)
        if tokenizer.num_tokens() > vocab_size:
            raise CheckpointError(
                f"the tokenizer {path} has {tokenizer.num_tokens()} tokens, but "
                f"model.language.vocab_size is {vocab_size}. Give the tokenizer of this model."
            )
        return tokenizer
    inside = folder / "tokenizer.model"
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
        shutil.copyfile(self._path, directory / "tokenizer.model")


class _Folder:
    """The files of a fast tokenizer, copied; what a SentencePiece model beside it says is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._content = read_json(folder / "tokenizer.json")
        config = folder / "tokenizer_config.json"
        self._config = read_json(config) if config.exists() else {}
        try:
            vocabulary = self._content["model"]["vocab"]
            added = {entry["content"]: entry["id"] for entry in self._content["added_tokens"]}
            self._ids: dict[str, int] = (vocabulary if isinstance(vocabulary, dict) else {}) | added
            self._num_tokens = 1 + max([*self._ids.values(), len(vocabulary) - 1])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} is damaged: no vocabulary. Fetch it again."
            ) from None

    def num_tokens(self) -> int:
        return self._num_tokens

    def token_ids(self) -> dict[str, int | None]:
        bos, eos, pad = (self._id_of(f"{name}_token") for name in ("bos", "eos", "pad"))
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
        for name in _FOLDER_FILES:
            if (self._folder / name).exists():
                shutil.copyfile(self._folder / name, directory / name)
        content: dict[str, Any] = dict(self._content)
        if with_image and IMAGE_TOKEN not in self._ids:
            image = added_token(self._num_tokens, IMAGE_TOKEN)
            content["added_tokens"] = [*content["added_tokens"], image]
            # Lists of the same tokens elsewhere would win over this one.
            (directory / "added_tokens.json").unlink(missing_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        config |= {"model_max_length": max_length}
        if with_image:
            config.pop("added_tokens_decoder", None)
        if processor is not None:
            config["processor_class"] = processor
        for name, values in (("tokenizer.json", content), ("tokenizer_config.json", config)):
            text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
            (directory / name).write_text(text, encoding="utf-8")

    def _id_of(self, name: str) -> int | None:
        token = self._config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return self._ids.get(text) if isinstance(text, str) else None

"""A SentencePiece model behind the face that ``Tokenizer`` shows."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from vila_mc.data.tokenizers.hugging_face_tokenizer import named_tokens
from vila_mc.data.tokenizers.sentencepiece_model import PieceType, parse
from vila_mc.errors import DataError
from vila_mc.foreign_files import ForeignFileError
from vila_mc.kernels.text import BytePairEncoder, is_built

SPACE = "\u2581"
"""What stands for a space inside pieces."""


class SentencePieceTokenizer:
    """See ``vila_mc.data.tokenizers.tokenizer.Backend``.

    Args:
        file: the ``.model`` file, for messages.
        content: its bytes.

    Raises:
        DataError: it is no SentencePiece model, lacks BOS or EOS, or files beside it name others.
    """

    def __init__(self, file: Path, content: bytes) -> None:
        self._file = file
        try:
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.load_from_serialized_proto(content)
        except (RuntimeError, UnicodeDecodeError):
            raise DataError(
                f"{file} is not a SentencePiece model. Give the .model file of a tokenizer, or "
                "train one."
            ) from None
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        bos_id = self._special("BOS", self._processor.bos_id())
        self.bos_id: int | None = bos_id
        self.eos_id = self._special("EOS", self._processor.eos_id())
        self._require_named(bos_token=bos_id, eos_token=self.eos_id)
        control = filter(self._processor.is_control, range(self.vocab_size))
        self.special: Mapping[str, int] = {self._processor.id_to_piece(i): i for i in control}
        self.adds_space = "".join(self._processor.encode("a", out_type=str)).startswith(SPACE)
        self._content = content

    @cached_property
    def _fast(self) -> BytePairEncoder | None:
        # Not every user of a tokenizer encodes, and this takes a tenth of a second.
        try:
            return _byte_pair_encoder(self._content)
        except ForeignFileError as error:
            raise DataError(f"{self._file} {error}. Give the .model file of a tokenizer.") from None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Backend.encode_batch``."""
        if self._fast is not None:
            return self._fast.encode_batch(texts)
        # Its threads would fight over the cores with the other worker processes.
        found = self._processor.encode(list(texts), num_threads=1)
        return [np.array(ids, np.int32) for ids in found]

    def decode(self, ids: list[int]) -> str:
        """See ``Backend.decode``."""
        text: str = self._processor.decode(ids)
        return text

    def token(self, token_id: int) -> str:
        """See ``Backend.token``."""
        return str(self._processor.id_to_piece(token_id)).replace(SPACE, " ")

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """See ``Backend.encode_rendered``. Raises DataError."""
        raise DataError(f"{self._file} reads no special tokens in a text.")

    def chat_template(self) -> tuple[str | None, dict[str, str]]:
        """See ``Backend.chat_template``."""
        return None, {}

    def _require_named(self, **ids: int) -> None:
        """Refuse BOS or EOS that are tokens added beside the model: it cannot hold them."""
        named = named_tokens(self._file.parent)
        for name, own in ids.items():
            text, piece = named.get(name), self._processor.id_to_piece(own)
            if text and text != piece:  # older files say "" where they mean nothing
                raise DataError(
                    f"files beside {self._file} name the {name} {text}, but in the model it is "
                    f"{piece}, which would be trained in its place. Give a tokenizer.json with the "
                    "tokens that were added, as transformers saves it."
                )

    def _special(self, name: str, token_id: int) -> int:
        if token_id < 0 or not self._processor.is_control(token_id):
            raise DataError(
                f"{self._file} has no {name} token. Use a Llama-style model with <s> and </s>, or "
                "train one."
            )
        return token_id


def _byte_pair_encoder(content: bytes) -> BytePairEncoder | None:
    """The native encoder, where it is built and does exactly what SentencePiece does.

    It trusts what is checked here: every byte and the space have a piece of their kind, so that a
    text has no more tokens than bytes; and scores can be compared.

    Raises:
        ForeignFileError: it is no SentencePiece model.
    """
    model = parse(content)
    kinds = {piece.text: piece.type for piece in model.pieces}
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if (
        not is_built()
        or not (model.is_bpe and model.is_identity and model.adds_dummy_prefix)
        or model.removes_extra_whitespace
        or not model.has_byte_fallback
        or any(kinds.get(name) != PieceType.BYTE for name in bytes_)
        or kinds.get(SPACE) != PieceType.NORMAL
        or not {PieceType.USER_DEFINED, PieceType.UNUSED}.isdisjoint(kinds.values())
        or not all(math.isfinite(piece.score) for piece in model.pieces)
    ):
        return None
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    return BytePairEncoder(
        [piece.text for piece in model.pieces],
        [piece.score for piece in model.pieces],
        [piece.type == PieceType.NORMAL for piece in model.pieces],
        [ids[name] for name in bytes_],
    )

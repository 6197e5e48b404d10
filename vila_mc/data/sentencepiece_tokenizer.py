"""A SentencePiece model behind the face that ``Tokenizer`` shows."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from vila_mc.errors import DataError


class SentencePieceTokenizer:
    """See ``vila_mc.data.tokenizer.Backend``.

    Args:
        file: the ``.model`` file, for messages.
        content: its bytes.

    Raises:
        DataError: it is no SentencePiece model, or lacks BOS or EOS.
    """

    def __init__(self, file: Path, content: bytes) -> None:
        self._file = file
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError:
            raise DataError(
                f"{file} is not a SentencePiece model. Give the .model file of a tokenizer, or "
                "train one with tools/train_tokenizer.py."
            ) from None
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id = self._special("BOS", self._processor.bos_id())
        self.eos_id = self._special("EOS", self._processor.eos_id())
        self.adds_space = self._processor.encode("a") == self._processor.encode(" a")[1:] or (
            self._processor.id_to_piece(self._processor.encode("a")[0]).startswith("\u2581")
        )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See ``Backend.encode_batch``."""
        # Its threads would fight over the cores with the other worker processes.
        found = self._processor.encode(list(texts), num_threads=1)
        return [np.array(ids, np.int32) for ids in found]

    def decode(self, ids: list[int]) -> str:
        """See ``Backend.decode``."""
        text: str = self._processor.decode(ids)
        return text

    def _special(self, name: str, token_id: int) -> int:
        if token_id < 0 or not self._processor.is_control(token_id):
            raise DataError(
                f"{self._file} has no {name} token. Use a Llama-style model with <s> and </s>, or "
                "train one with tools/train_tokenizer.py."
            )
        return token_id

"""Tokenizers: use one of SentencePiece or Hugging Face, train one of SentencePiece.

Special tokens never come from text: ``<s>``, ``</s>``, ``<unk>`` and ``<image>`` inside a caption
or a web page are tokenised as the characters they are. BOS and EOS are placed by the code that
knows where a sample or a turn ends, and an image is a part of a sample, not a token.
"""

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from vila_mc.errors import DataError
from vila_mc.files import write_whole
from vila_mc.foreign_files import ForeignFileError, read_foreign

_IN_FOLDERS = ("tokenizer.json", "tokenizer.model")
_LARGEST_BYTES = 1 << 27
"""Largest tokenizer file that is read; the largest in use has some 35 MB."""
_LONGEST_SENTENCE = 1000
"""Characters, 4 bytes each at most. SentencePiece drops training sentences above 4,192 bytes
without a word, so longer ones are cut."""

_FEW_CHARACTERS = 256
"""Different characters of a text that all get a token, be they ever so rare in it."""
_COVERAGE = 0.99995
"""Share of the characters of another text that get one, as Llama has it; the others are spelled in
bytes."""


class Backend(Protocol):
    """A tokenizer library and one vocabulary of it."""

    vocab_size: int
    bos_id: int | None
    eos_id: int
    adds_space: bool
    fingerprint: str
    special: Mapping[str, int]
    """Ids of special tokens, by their texts."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without BOS and EOS."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids within the vocabulary."""
        ...

    def token(self, token_id: int) -> str:
        """A token as people read it, its space included."""
        ...

    def encode_rendered(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text in which special tokens are read as such, and [tokens, 2] where each
        starts and ends in it.

        Raises:
            DataError: this library cannot.
        """
        ...

    def chat_template(self) -> tuple[str | None, dict[str, str]]:
        """A chat template in Jinja, None if there is none, and its variables."""
        ...


class Tokenizer:
    """A tokenizer on disk, of SentencePiece or of Hugging Face.

    Args:
        path: a SentencePiece ``.model`` file, a ``tokenizer.json``, or a folder with either.

    Raises:
        DataError: the file is missing, is no tokenizer, or lacks BOS or EOS.
        SetupError: it is a Hugging Face tokenizer and the tokenizers package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._backend = _open_backend(self.path)
        self.vocab_size: int = self._backend.vocab_size
        """Number of token ids; the ids are 0 to vocab_size - 1."""
        self.bos_id: int | None = self._backend.bos_id
        """Id of the token that starts a sample; None where samples start without one."""
        self.eos_id: int = self._backend.eos_id
        """Id of the token that ends a turn."""
        self.adds_space: bool = self._backend.adds_space
        """Whether ``encode`` reads every text as if a space stood before it, as Llama 2's does."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without BOS and EOS. No text becomes a special token.

        Raises:
            DataError: the text holds half of a surrogate pair, which no UTF-8 file can hold; or
                this tokenizer reads something in it as a special token whatever one does.
        """
        check_unicode(text)
        ids: list[int] = self._backend.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(
        self, texts: Sequence[str], goes_on: Sequence[bool] | None = None
    ) -> list[np.ndarray]:
        """[tokens] int32 of each text, much faster than one by one.

        Args:
            texts: valid Unicode, see ``check_unicode``.
            goes_on: whether each text goes on where another ends, so that no space is read before
                it but its own; None: none does.

        Raises:
            DataError: as ``encode``, for any of the texts.
        """
        if goes_on is None or not self.adds_space:
            return self._backend.encode_batch(texts)
        # A text that goes on with a space is what the tokenizer makes of it without; any other is
        # read behind a newline, whose own tokens are then left out.
        behind = [on and not text.startswith(" ") for text, on in zip(texts, goes_on, strict=True)]
        read = [
            f"\n{text}" if is_behind else text[1:] if on else text
            for text, is_behind, on in zip(texts, behind, goes_on, strict=True)
        ]
        found = self._backend.encode_batch(read)
        if not any(behind):
            return found
        newline = self._backend.encode_batch(["\n"])[0]
        return [
            self._without(newline, ids, text) if is_behind else ids
            for ids, text, is_behind in zip(found, texts, behind, strict=True)
        ]

    def _without(self, newline: np.ndarray, ids: np.ndarray, text: str) -> np.ndarray:
        if not np.array_equal(ids[: len(newline)], newline):
            raise DataError(
                f"{self.path} joins a newline with {text[:20]!r}, so the text cannot be read "
                "without a space before it. End the template's words in front of it with a space."
            )
        return ids[len(newline) :]

    def encode_rendered(
        self, texts: Sequence[str], are_trained: Sequence[bool]
    ) -> list[tuple[np.ndarray, bool]]:
        """Ids of texts that are one, special tokens in them read as such.

        Args:
            texts: one after the other, as a chat template wrote them.
            are_trained: whether each is learned.

        Returns:
            Ids and whether they are learned, in order; a token that is partly learned is learned.

        Raises:
            DataError: this is no Hugging Face tokenizer.
        """
        ids, places = self._backend.encode_rendered("".join(texts))
        starts, ends = places.T
        is_trained = np.zeros(len(ids), bool)
        place = 0
        for text, trained in zip(texts, are_trained, strict=True):
            if trained:
                is_trained |= (starts < place + len(text)) & (ends > place)
            place += len(text)
        bounds = [0, *(np.flatnonzero(np.diff(is_trained)) + 1).tolist(), len(ids)]
        return [
            (ids[start:end], bool(is_trained[start]))
            for start, end in itertools.pairwise(bounds)
            if end > start
        ]

    def special_tokens(self) -> tuple[str, ...]:
        """Texts of the special tokens."""
        return tuple(self._backend.special)

    def spells_special(self, text: str) -> bool:
        """Whether a text holds the characters of a special token, which ``encode`` reads as such
        characters."""
        firsts, pattern = self._spelled  # most texts hold not even the first character of one
        return any(map(text.__contains__, firsts)) and pattern.search(text) is not None

    @cached_property
    def _spelled(self) -> tuple[frozenset[str], re.Pattern[str]]:
        spelled = [text for text in self._backend.special if text]
        pattern = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
        return frozenset(text[0] for text in spelled), pattern

    def special_id(self, token: str) -> int:
        """Id of a special token. Raises DataError: there is none of that text."""
        try:
            return self._backend.special[token]
        except KeyError:
            raise DataError(
                f"{self.path} has no special token {token}. Use another template."
            ) from None

    def chat_template(self) -> tuple[str | None, dict[str, str]]:
        """The chat template beside the tokenizer, in Jinja, and the variables it may use.

        Returns:
            Its text, None if there is none; texts of special tokens by names such as ``eos_token``.

        Raises:
            DataError: a file beside the tokenizer cannot be read.
        """
        return self._backend.chat_template()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; BOS and EOS vanish.

        Raises:
            DataError: an id lies outside the vocabulary.
        """
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise DataError(
                f"token id {wrong[0]} is outside the vocabulary of {self.path} "
                f"(0 to {self.vocab_size - 1}). Use the tokenizer that the model was trained with; "
                "with that one, a model that has hardly learnt says such tokens: train it longer."
            )
        return self._backend.decode([int(i) for i in ids])

    def token(self, token_id: int) -> str:
        """One token for people to read, its space included; special ones by their names."""
        return self._backend.token(token_id)

    def fingerprint(self) -> str:
        """SHA-256 of the ``.model`` or ``tokenizer.json`` file, in hexadecimal."""
        return self._backend.fingerprint


def check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell. Raises DataError."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text is not valid Unicode: character {error.start} is half of a surrogate "
            "pair. Repair the file it came from."
        ) from None


def _open_backend(path: Path) -> Backend:
    # Each library is imported when it is needed.
    file = path
    if path.is_dir():
        names = [name for name in _IN_FOLDERS if (path / name).is_file()]
        if not names:
            raise DataError(
                f"the folder {path} holds neither {' nor '.join(_IN_FOLDERS)}. Give a tokenizer."
            )
        file = path / names[0]
    content = _read(file)
    if file.suffix == ".json":
        from vila_mc.data.tokenizers.hugging_face_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(file, content)
    from vila_mc.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer(file, content)


def train_tokenizer(
    sentences: Iterable[str],
    output: Path,
    vocab_size: int,
    special: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> int:
    """Train a Llama-like SentencePiece model: BPE, byte fallback, digits split, nothing normalised.

    Ids 0, 1 and 2 are ``<unk>``, ``<s>`` and ``</s>``; there is no padding token. The same
    sentences in the same order give the same file. ``output`` appears only when it is complete.

    Args:
        sentences: training text; ``corpus_text.read_sentences`` reads it from files. All of it is
            held in memory, so give a sample of a large corpus.
        output: the ``.model`` file to write.
        vocab_size: token ids, the 256 bytes and all special tokens included.
        special: special tokens besides those three, as a chat template needs them.
        overwrite: whether a file that is there may be replaced.

    Returns:
        How many sentences were used.

    Raises:
        DataError: the file exists, there is no text, or too little (or too much) of it for
            ``vocab_size``.

    Source:
        Llama 2, arXiv 2307.09288, section 2.2 (tokenizer).
    """
    if output.exists() and not overwrite:
        raise DataError(
            f"{output} exists already, and datasets that were made with it need it as it is. "
            "Choose another output, or ask to overwrite it.",
            option="overwrite",
        )
    chunks = [chunk for sentence in sentences for chunk in _chunks(sentence)]
    if not chunks:
        raise DataError("there is no text to train on. Check the files.", option="input")
    write_whole(output, _trained(chunks, vocab_size, special))
    return len(chunks)


def _trained(chunks: Sequence[str], vocab_size: int, special: Sequence[str]) -> bytes:
    """The model's file. Raises DataError: the text is too little or too much for it."""
    characters = set(itertools.chain.from_iterable(map(set, chunks)))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            character_coverage=1.0 if len(characters) <= _FEW_CHARACTERS else _COVERAGE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(special),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain(error, vocab_size), option="vocab_size") from None
    return model.getvalue()


def _read(path: Path) -> bytes:
    try:
        return read_foreign(path, _LARGEST_BYTES)
    except ForeignFileError as error:
        raise DataError(
            f"the tokenizer {path} {error}. Give a SentencePiece .model file or a Hugging Face "
            "tokenizer.json."
        ) from None
    except FileNotFoundError:
        raise DataError(
            f"there is no tokenizer {path}. Give a SentencePiece .model file or a Hugging Face "
            "tokenizer.json, or train one."
        ) from None
    except OSError as error:
        raise DataError(
            f"the tokenizer {path} cannot be read: {error.strerror}. Give a SentencePiece .model "
            "file or a Hugging Face tokenizer.json that you may read."
        ) from None


def _chunks(sentence: str) -> Iterator[str]:
    clean = sentence.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
    for line in clean.splitlines():
        for start in range(0, len(line), _LONGEST_SENTENCE):
            chunk = line[start : start + _LONGEST_SENTENCE]
            if chunk.strip():
                yield chunk


def _explain(error: RuntimeError, vocab_size: int) -> str:
    text = " ".join(str(error).split())
    if at_most := re.search(r"too high.*<= (\d+)", text):
        return (
            f"a vocabulary of {vocab_size} tokens is too large for this text, which yields at "
            f"most {at_most.group(1)}. Ask for fewer, or give more text."
        )
    if re.search(r"(?i)vocab\w* size is (too )?small", text):
        return (
            f"a vocabulary of {vocab_size} tokens is too small: 256 bytes, 3 special tokens and "
            "every character of the text need one each. Ask for more."
        )
    return f"SentencePiece cannot train a vocabulary of {vocab_size} tokens on this text: {text}"

"""The datasets of a run and the order of its samples: from indices alone, and without torch."""

from collections.abc import Sequence

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.blend import Blend
from vila_mc.data.batches.held_out import learnt_parts
from vila_mc.data.batches.sampler import Sampler
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.tiles import Tiling
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError


def sampler_of(
    data: DataConfig, model: ModelConfig, global_batch: int, readers: Sequence[IndexedReader]
) -> Sampler:
    """The global batches of a run, of ``global_batch`` rows each. Raises DataError."""
    make = Blend.by_epochs if data.by_epochs() else Blend.by_weights
    parts = learnt_parts(data, readers)
    return Sampler(
        make(data.blend_shares(), [part.size for part in parts], data.seed),
        readers,
        num_rows=global_batch,
        sequence_length=data.sequence_length,
        tile_positions=model.tile_positions(),
        packing=data.packing,
        parts=parts,
    )


def open_blend(data: DataConfig, model: ModelConfig) -> tuple[IndexedReader, ...]:
    """Open the datasets of a blend and check that they were made for this run.

    Raises:
        ConfigError: the blend or the tokenizer is not set, or the tokenizer lacks the token that
            stands behind tiles.
        DataError: a dataset cannot be used, or was made with another tokenizer.
    """
    if not data.blend:
        raise ConfigError("data.blend is empty. Name at least one dataset: [{path: PREFIX}].")
    return _open(data.blend, data, model)


def open_validation(data: DataConfig, model: ModelConfig) -> tuple[IndexedReader, ...]:
    """The same of ``data.validation``, which may be empty."""
    return _open(data.validation, data, model) if data.validation else ()


def open_indices(data: DataConfig, model: ModelConfig) -> tuple[IndexedReader, ...]:
    """The indices of a blend, for who reads no sample: .bin and tokenizer need not be there.

    Raises:
        DataError: an index cannot be used.
    """
    tiling = Tiling.of(model.vision)
    return tuple(IndexedReader(entry.path, tiling, index_alone=True) for entry in data.blend)


def _open(
    entries: Sequence[BlendEntry], data: DataConfig, model: ModelConfig
) -> tuple[IndexedReader, ...]:
    if data.tokenizer is None:
        raise ConfigError(
            "data.tokenizer is not set. Give the tokenizer that the datasets were made with."
        )
    tokenizer = Tokenizer(data.tokenizer)
    # Hugging Face models often have more rows than their tokenizers have tokens.
    if tokenizer.vocab_size > model.language.vocab_size:
        raise DataError(
            f"data.tokenizer {data.tokenizer} has {tokenizer.vocab_size} tokens, but "
            f"model.language.vocab_size is {model.language.vocab_size}. Raise the second to "
            "the first, or use the model's tokenizer."
        )
    newline = model.vision.tile_newline
    if newline is not None and newline >= tokenizer.vocab_size:
        raise ConfigError(
            f"model.vision.tile_newline is {newline}, but data.tokenizer {data.tokenizer} has "
            f"tokens 0 to {tokenizer.vocab_size - 1}. Use one of these."
        )
    tiling = Tiling.of(model.vision)
    readers = tuple(IndexedReader(entry.path, tiling) for entry in entries)
    for reader in readers:
        theirs = reader.manifest.tokenizer_sha256, reader.manifest.vocab_size
        if theirs != (tokenizer.fingerprint(), tokenizer.vocab_size):
            raise DataError(
                f"the dataset {reader.prefix} was made with another tokenizer "
                f"({reader.manifest.vocab_size} tokens) than data.tokenizer {data.tokenizer} "
                f"({tokenizer.vocab_size} tokens). Preprocess the raw data with this "
                "tokenizer, or set data.tokenizer to the one that made it."
            )
    return readers

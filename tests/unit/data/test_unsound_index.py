"""An index with right checksums is believed in nothing: it works everywhere, or is a DataError."""

import dataclasses
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_mc.config.data import BlendEntry, DataConfig
from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.loader import TrainingData
from vila_mc.data.indexed.dataset_manifest import SUFFIX, DatasetManifest, SetKind, to_json
from vila_mc.data.indexed.layout import (
    DTYPE_CODES,
    HEADER,
    LENGTH,
    MAGIC,
    MODE,
    POINTER,
    VERSION,
    dtype_code,
    text_dtype,
    with_suffix,
)
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.inspection.page import sample_page
from vila_mc.data.inspection.summary import summary_lines
from vila_mc.data.inspection.verify_dataset import verify
from vila_mc.data.inspection.write_records import export
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.files import sha256_of


@dataclass(frozen=True, slots=True)
class Index:
    """Two samples of BOS, an image of 8 bytes and three tokens; whatever is changed in them."""

    lengths: tuple[int, ...] = (4, 8, 12, 4, 8, 12)
    pointers: tuple[int, ...] = (0, 4, 12, 24, 28, 36)
    documents: tuple[int, ...] = (0, 3, 6)
    modes: tuple[int, ...] = (2, 1, 0, 2, 1, 0)
    ids: tuple[int, ...] = (1, 7, 7, 9, 9, 2) * 2
    """The whole of .bin, as int32 or, in a set of text, as uint16."""
    samples: int = 2
    vocab_size: int = 400
    kind: SetKind = "multimodal"

    def write(self, prefix: Path, tokenizer: Tokenizer) -> Path:
        """Write it with checksums that fit."""
        dtype = DTYPE_CODES[1] if self.kind == "multimodal" else text_dtype(self.vocab_size)
        stored = np.array(self.ids, "<i4" if self.kind == "multimodal" else dtype)
        with_suffix(prefix, ".bin").write_bytes(stored.tobytes())
        arrays = [(self.lengths, LENGTH), (self.pointers, POINTER), (self.documents, POINTER)]
        arrays += [(self.modes, MODE)] if self.kind == "multimodal" else []
        header = MAGIC, VERSION, dtype_code(dtype), len(self.lengths), len(self.documents)
        index = with_suffix(prefix, ".idx")
        index.write_bytes(
            HEADER.pack(*header) + b"".join(np.array(each, kind).tobytes() for each, kind in arrays)
        )
        manifest = DatasetManifest(
            format_version=2,
            kind=self.kind,
            tokenizer_sha256=tokenizer.fingerprint(),
            vocab_size=self.vocab_size,
            samples=self.samples,
            tokens=8,
            images=2,
            bin_bytes=stored.nbytes,
            idx_sha256=sha256_of(index),
            bin_sha256=sha256_of(with_suffix(prefix, ".bin")),
            source={},
            tool_version="0",
        )
        with_suffix(prefix, SUFFIX).write_text(to_json(manifest))
        return prefix


TEXT = Index(
    kind="text", lengths=(6, 6), pointers=(0, 12), documents=(0, 1, 2), modes=(), vocab_size=400
)
SOUND = Index()
changed = dataclasses.replace


def count(reader: IndexedReader, tokenizer: Tokenizer, model: ModelConfig) -> None:
    tokens, images = reader.sizes(np.arange(len(reader)))
    assert (tokens == reader.token_counts()).all()
    assert (images == reader.image_counts()).all()
    assert (tokens + images).min() > 0
    summary_lines(reader, 4, "a model")


def train(
    reader: IndexedReader, tokenizer: Tokenizer, model: ModelConfig, packing: bool = False
) -> None:
    data = DataConfig(
        blend=(BlendEntry(path=reader.prefix),),
        tokenizer=tokenizer.path,
        sequence_length=10,
        packing=packing,
        workers=0,
        on_bad_image="substitute",
    )
    with TrainingData(
        data, model, micro_batch=2, global_batch=4, data_rank=0, data_size=1, needs_images=True
    ) as loader:
        loader.cut_samples()
        for batch in loader.step(1).microbatches:
            assert batch.tokens.min() >= 0
            assert batch.tokens.max() < model.language.vocab_size


def inspect(reader: IndexedReader, tokenizer: Tokenizer, model: ModelConfig) -> None:
    verify(reader.prefix)
    for index in range(len(reader)):
        sample_page(reader, index, tokenizer, tile_positions=4)


def write(reader: IndexedReader, tokenizer: Tokenizer, model: ModelConfig) -> None:
    export(reader, tokenizer, reader.prefix.with_name("exported"))


USES = (count, train, partial(train, packing=True), inspect, write)


@pytest.mark.parametrize("index", [SOUND, TEXT])
def test_a_sound_one_is_read(
    tmp_path: Path, index: Index, tokenizer: Tokenizer, model: ModelConfig
) -> None:
    reader = IndexedReader(index.write(tmp_path / "set", tokenizer))
    count(reader, tokenizer, model)
    train(reader, tokenizer, model)
    train(reader, tokenizer, model, packing=True)


OPENED = {
    "negative length": (changed(SOUND, lengths=(4, -8, 12, 4, 8, 28)), "negative length"),
    "unaligned": (changed(SOUND, lengths=(4, 9, 11, 4, 8, 12)), "multiple of 4"),
    "beyond the end": (changed(SOUND, lengths=(4, 8, 12, 4, 8, 16)), "do not fill"),
    "before the start": (changed(SOUND, pointers=(-4, 4, 12, 24, 28, 36)), "do not fill"),
    "samples backwards": (changed(SOUND, documents=(0, 6, 3), samples=2), "not in order"),
    "a sample without pieces": (changed(SOUND, documents=(0, 0, 6)), "no pieces"),
    "samples of other pieces": (changed(SOUND, documents=(0, 3, 7)), "not in order"),
    "pieces of no sample": (changed(SOUND, documents=(1, 3, 6)), "not in order"),
    "no samples": (changed(SOUND, documents=(0,), samples=0), "no samples"),
    "no pieces": (
        Index(lengths=(), pointers=(), modes=(), documents=(0, 0), samples=1),
        "no pieces",
    ),
    "a mode of another version": (changed(SOUND, modes=(2, 1, 0, 2, 1, 3)), "of a kind"),
    "a negative mode": (changed(SOUND, modes=(2, 1, 0, 2, 1, -1)), "of a kind"),
}


@pytest.mark.parametrize("name", OPENED)
def test_found_when_the_set_is_opened(tmp_path: Path, name: str, tokenizer: Tokenizer) -> None:
    index, message = OPENED[name]
    prefix = index.write(tmp_path / "set", tokenizer)
    with pytest.raises(DataError, match=message):
        IndexedReader(prefix)


READ = {
    "backwards": (changed(SOUND, pointers=(0, 4, 24, 12, 28, 36)), "sample 0 does not end where"),
    "nowhere": (
        changed(SOUND, pointers=(0, -4, 4, 24, 28, 36), lengths=(4, 8, 20, 4, 8, 12)),
        "sample 0 does not end where",
    ),
    "an empty sample": (
        changed(TEXT, lengths=(0, 6), ids=(1, 7, 7, 9, 9, 2), pointers=(0, 0)),
        "sample 0 is empty",
    ),
    "overlap": (changed(SOUND, pointers=(0, 0, 12, 24, 28, 36)), "sample 0 does not end where"),
    "gap": (changed(SOUND, pointers=(0, 8, 12, 24, 28, 36)), "sample 0 does not end where"),
    "into the next": (changed(SOUND, lengths=(4, 8, 16, 4, 8, 12)), "sample 0 does not end where"),
    "negative id": (changed(SOUND, ids=(1, 7, 7, -1, 9, 2) * 2), "sample 0 holds the token id -1"),
    "large id": (
        changed(SOUND, ids=(1, 7, 7, 9, 9, 2, 400, 7, 7, 9, 9, 2)),
        r"sample 1 holds the token id 400, outside its vocabulary \(0 to 399\)",
    ),
    "large id of text": (changed(TEXT, ids=(1, 7, 7, 9, 9, 401) * 2), "sample 0 .* token id 401"),
}


@pytest.mark.parametrize("name", READ)
def test_found_when_a_sample_is_read(
    tmp_path: Path, name: str, tokenizer: Tokenizer, model: ModelConfig
) -> None:
    index, message = READ[name]
    prefix = index.write(tmp_path / "set", tokenizer)
    with pytest.raises(DataError, match=message):
        train(IndexedReader(prefix), tokenizer, model)
    assert name == "an empty sample" or any("sample" in each for each in verify(prefix).faults)


def test_a_vocabulary_that_is_not_the_tokenizers(
    tmp_path: Path, tokenizer: Tokenizer, model: ModelConfig
) -> None:
    prefix = changed(SOUND, vocab_size=10**6).write(tmp_path / "set", tokenizer)
    with pytest.raises(DataError, match=r"made with another tokenizer \(1000000 tokens\)"):
        train(IndexedReader(prefix), tokenizer, model)


NUMBERS = st.one_of(st.integers(-8, 60), st.sampled_from([2**31 - 1, -(2**31), 400, 399, 65535]))
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["lengths", "pointers", "documents", "modes", "ids"]),
        st.integers(0, 11),
        NUMBERS,
        st.sampled_from(["set", "insert", "delete"]),
    ),
    min_size=1,
    max_size=4,
)


def mutated(index: Index, changes: list[tuple[str, int, int, str]]) -> Index:
    """The index with some entries set, inserted or deleted."""
    for name, at, number, how in changes:
        values = list(getattr(index, name))
        largest = {"modes": 127, "ids": 65535 if index.kind == "text" else 2**31 - 1}
        number = min(number, largest.get(name, 2**31 - 1))
        if name == "ids" and index.kind == "text":
            number = max(number, 0)
        if name == "modes":
            number = max(number, -128)
        at = min(at, len(values))
        values[at : at + (how != "insert")] = [] if how == "delete" else [number]
        index = changed(index, **{name: tuple(values)})
    return index


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([SOUND, TEXT]), CHANGES, st.sampled_from([None, 1, 2, 3]))
def test_any_other_works_or_is_refused(
    tokenizer: Tokenizer,
    model: ModelConfig,
    start: Index,
    changes: list[tuple[str, int, int, str]],
    samples: int | None,
) -> None:
    index = mutated(start, changes)
    samples = len(index.documents) - 1 if samples is None else samples
    with tempfile.TemporaryDirectory() as folder:
        prefix = changed(index, samples=max(0, samples)).write(Path(folder) / "set", tokenizer)
        with suppress(DataError):
            reader = IndexedReader(prefix)
            for use in USES:
                with suppress(DataError):
                    use(reader, tokenizer, model)

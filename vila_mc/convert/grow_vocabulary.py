"""A published model whose tokenizer has more tokens than its tables have rows, as one that grew."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor
from vila_mc.checkpoint.vocabulary import TABLES, growth, mean_row
from vila_mc.convert.formats.format import ForeignModel
from vila_mc.convert.tokenizer_source import count_tokens
from vila_mc.errors import CheckpointError, say


def with_tokenizer(source: ForeignModel, directory: Path) -> ForeignModel:
    """The model with another tokenizer, such as its own with tokens added for a chat template.

    Args:
        source: what was found.
        directory: of the tokenizer; its first tokens must be those of the model.

    Raises:
        CheckpointError: there is no tokenizer, or it is damaged.
    """
    if count_tokens(directory, has_added_tokens=True) is None:
        raise CheckpointError(
            f"{directory} holds neither tokenizer.json nor tokenizer.model. Give the directory of "
            "a tokenizer.",
            option="tokenizer",
        )
    return grown(replace(source, tokenizer_dir=directory, has_added_tokens=True))


def grown(source: ForeignModel) -> ForeignModel:
    """The model with a row for every token of its tokenizer; the same where it has them.

    New rows of the embedding and of the output layer are the mean of the others, and it is said in
    one line; rows that were there stay bit by bit.

    Raises:
        CheckpointError: its tokenizer is damaged.
    """
    language = source.model.language
    tokens = count_tokens(source.tokenizer_dir, has_added_tokens=source.has_added_tokens)
    if tokens is None or tokens <= language.vocab_size:
        return source
    say(growth(language.vocab_size, tokens))
    model = replace(source.model, language=replace(language, vocab_size=tokens))
    shape = (model.language.padded_vocab(), language.width)
    tables = {
        name: LazyTensor(
            shape,
            table.dtype,
            lambda table=table: _grown(table.read()[: language.vocab_size], tokens, shape[0]),  # type: ignore[misc]
        )
        for name, table in source.tensors.items()
        if name in TABLES
    }
    origin = replace(source.origin, vocab_size=language.vocab_size)
    return replace(source, model=model, tensors=source.tensors | tables, origin=origin)


def _grown(real_vh: Tensor, tokens: int, rows: int) -> Tensor:
    """[rows, h]: the rows that are there, the mean of them up to ``tokens``, and zeros."""
    table = real_vh.new_zeros(rows, real_vh.shape[1])
    table[: len(real_vh)] = real_vh
    table[len(real_vh) : tokens] = mean_row(real_vh).to(table.dtype)
    return table

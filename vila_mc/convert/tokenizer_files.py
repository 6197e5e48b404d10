"""A SentencePiece model as the tokenizer files that transformers loads.

The conversion is exact, so the exported processor needs no sentencepiece: merges are ranked by the
score of the piece they make, as SentencePiece picks them, and text is normalised in the same steps.
Transformers' own LlamaTokenizer is not exact (it swallows a leading space), which is why
``tokenizer_class`` names the plain class that takes tokenizer.json as it is. Models that this does
not hold for are refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vila_mc.data.tokenizers.sentencepiece_model import (
    PieceType,
    SentencePieceModel,
    read_sentencepiece,
)
from vila_mc.errors import CheckpointError

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers that takes a tokenizer.json as it is."""
_SPACE = "\u2581"
"""SentencePiece's visible space."""


def load_convertible(path: Path, vocab_size: int) -> SentencePieceModel:
    """Read a tokenizer and refuse what has no exact counterpart.

    Args:
        path: the SentencePiece ``.model``.
        vocab_size: vocabulary of the language model.

    Raises:
        CheckpointError: the tokenizer is not like Llama's, or has more tokens than the model.
    """
    model = read_sentencepiece(path)
    for is_fine, what in (
        (model.is_bpe, "is not a BPE model"),
        (model.is_identity, "normalises its text"),
        (
            all(piece.type is not PieceType.USER_DEFINED for piece in model.pieces),
            "has user-defined symbols",
        ),
        (None not in (model.special(BOS), model.special(EOS)), f"lacks {BOS} or {EOS}"),
        (model.special(UNK) is not None, f"lacks {UNK}"),
    ):
        if not is_fine:
            raise CheckpointError(
                f"the tokenizer {path} {what}, so it has no exact counterpart in Hugging Face. Use "
                "a Llama-style tokenizer: BPE, identity normalisation, <unk>, <s> and </s>."
            )
    if len(model.pieces) > vocab_size:
        raise CheckpointError(
            f"the tokenizer {path} has {len(model.pieces)} tokens, but model.language.vocab_size "
            f"is {vocab_size}. Give the tokenizer that the model was trained with."
        )
    return model


def write_tokenizer(
    model: SentencePieceModel,
    output: Path,
    max_length: int,
    *,
    processor: str | None = None,
    more: Sequence[dict[str, Any]] = (),
) -> None:
    """Write tokenizer.json and tokenizer_config.json into ``output``.

    Args:
        model: the tokenizer.
        output: an existing directory.
        max_length: longest sequence of the model.
        processor: class of the processor that it belongs to.
        more: tokens besides those of the model, as ``added_token`` makes them.
    """
    whole = tokenizer_json(model)
    whole["added_tokens"] += more
    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    write_tokenizer_files(whole, named, output, max_length, processor=processor)


def write_tokenizer_files(
    content: dict[str, Any],
    named: Mapping[str, str],
    output: Path,
    max_length: int,
    *,
    processor: str | None,
) -> None:
    """Write tokenizer.json and a tokenizer_config.json that is all ours.

    Args:
        content: of tokenizer.json.
        named: texts of special tokens; padding is EOS without one.
        output: an existing directory.
        max_length: longest sequence of the model.
        processor: class of the processor that it belongs to.
    """
    config: dict[str, Any] = {
        "tokenizer_class": TOKENIZER_CLASS,
        **({"pad_token": named["eos_token"]} if "eos_token" in named else {}),
        **named,
        "padding_side": "left",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    } | ({} if processor is None else {"processor_class": processor})
    for name, values in (("tokenizer.json", content), ("tokenizer_config.json", config)):
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        (output / name).write_text(text, encoding="utf-8")


def added_token(index: int, text: str) -> dict[str, Any]:
    """A special token of tokenizer.json."""
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The model in the format of the tokenizers library."""
    specials = [
        added_token(index, piece.text)
        for index, piece in enumerate(model.pieces)
        if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": {"type": "Sequence", "normalizers": _normalisers(model)},
        "pre_tokenizer": None,
        "post_processor": _begin_with_bos(model),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.has_byte_fallback,
            "ignore_merges": False,
            "vocab": {piece.text: index for index, piece in enumerate(model.pieces)},
            "merges": _merges(model),
        },
    }


def _merges(model: SentencePieceModel) -> list[str]:
    """Every way to make a piece out of two, best score first.

    The two stand with a space between them, as every version of the tokenizers library reads them.
    """
    normal = {
        piece.text: (-piece.score, index)
        for index, piece in enumerate(model.pieces)
        # Every space of a text becomes another character, so no text makes a piece with one.
        if piece.type is PieceType.NORMAL and " " not in piece.text
    }
    ranked = [
        (*rank, cut, text)
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return [f"{text[:cut]} {text[cut:]}" for _, _, cut, text in sorted(ranked)]


def _normalisers(model: SentencePieceModel) -> list[dict[str, Any]]:
    def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    steps: list[dict[str, Any]] = []
    if model.removes_extra_whitespace:
        steps.append(replace({"Regex": r"\A +"}, ""))
        steps.append(replace({"Regex": rf"[ {_SPACE}]+\z"}, ""))
        steps.append(replace({"Regex": " +"}, " "))
    if model.adds_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append(replace({"String": " "}, _SPACE))
    return steps


def _decoders(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.adds_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _begin_with_bos(model: SentencePieceModel) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {BOS: {"id": BOS, "ids": [model.special(BOS)], "tokens": [BOS]}},
    }

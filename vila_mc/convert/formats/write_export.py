"""Write a model in any format, as a directory that appears whole or not at all."""

from pathlib import Path

import torch

from vila_mc.checkpoint.lazy import LazyTensors
from vila_mc.checkpoint.trained_template import DEFAULT
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.export_source import DTYPE_NAMES, ExportSource
from vila_mc.convert.formats.format import Format
from vila_mc.convert.formats.registry import FORMATS, FormatName, find_format
from vila_mc.convert.output_directory import MANIFEST, output_directory
from vila_mc.convert.tokenizer_source import open_tokenizer
from vila_mc.convert.weights import read_json
from vila_mc.data.chat_templates import AnyTemplate
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import CheckpointError, VilaError
from vila_mc.evaluation.answer_end import AnswerEnd

ADAPTERS = "adapters"
"""What a manifest says of adapters that are not merged, by ``kind``."""
DEFAULT_SHARD_BYTES = 5 * 10**9


def write_export(
    tensors: LazyTensors,
    model: ModelConfig,
    tokenizer_path: Path,
    output: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    format: FormatName = "hf-vila",
    template: AnyTemplate = DEFAULT,
) -> None:
    """Write weights, configs, tokenizer, and what else a format has.

    The directory appears whole or not at all. Tensors are read and written one by one. Compare it
    with the training model before relying on it.

    Args:
        tensors: every parameter of a whole ``VilaModel``.
        model: its shape.
        tokenizer_path: the tokenizer that the data was made with, as ``open_tokenizer`` takes it.
        output: directory to write; an earlier export there is replaced.
        dtype: float32 or bfloat16.
        max_shard_bytes: most bytes in one weight file.
        format: its name.
        template: what the model was trained to chat with.

    Raises:
        CheckpointError: the state does not fit the model, the format cannot hold it, the tokenizer
            cannot be converted, or something that is not an export of ours stands at ``output``.
    """
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"an export cannot be {dtype}; choose {' or '.join(DTYPE_NAMES.values())}."
        )
    tokenizer = open_tokenizer(tokenizer_path, model.language.vocab_size)
    ends = end_ids(template, tokenizer_path)
    source = ExportSource(tensors, model, tokenizer, dtype, max_shard_bytes, template, ends)
    with output_directory(output, {"format": format}) as directory:
        find_format(format).write(source, directory)


def end_ids(template: AnyTemplate, tokenizer_path: Path) -> tuple[int, ...]:
    """Tokens, besides EOS, that end an answer: those that the template, or the tokenizer's own,
    puts behind one, or that of a text, such as the newline of ``plain``, where one token is it."""
    try:
        tokenizer = Tokenizer(tokenizer_path)
        if isinstance(template, TokenizerTemplate):
            _, variables = tokenizer.chat_template()
            known = tuple(sorted(variables.items())), tokenizer.special_tokens()
            template = TokenizerTemplate(template.text, *known)
        end = AnswerEnd.of(template, tokenizer)
        if not end.is_text_alone:
            return tuple(sorted(end.ids - {tokenizer.eos_id}))
        (ids,) = tokenizer.encode_batch([end.text], [True])
    except VilaError:  # a tokenizer can be written that cannot be asked with
        return ()
    return (int(ids[0]),) if len(ids) == 1 else ()


def written_format(directory: Path) -> Format:
    """The format that an export of ours is in. Raises CheckpointError if it is none."""
    if not (directory / MANIFEST).exists():
        raise CheckpointError(
            f"there is no {directory / MANIFEST}, so {directory} is no export of vila_mc. Give "
            "what tools/convert_checkpoint.py export wrote."
        )
    about = read_json(directory / MANIFEST)
    if about.get("kind") == ADAPTERS:
        raise CheckpointError(
            f"{directory} holds adapters, which compute nothing alone; they are compared when they "
            "are exported. Export them again."
        )
    name = about.get("format")
    if name not in FORMATS:
        raise CheckpointError(
            f"{directory / MANIFEST} names the format {name}; it is one of "
            f"{', '.join(FORMATS)}. Export again."
        )
    return find_format(name)

"""What a checkpoint is: ours or Hugging Face's, without reading its weights."""

import math
from collections.abc import Iterator
from pathlib import Path

from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.base_place import base_directory
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.lazy import LazyTensors
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.trained_template import shown, template_of
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.convert.chat_template import published_template
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import towers_by_type
from vila_mc.convert.formats.whole_directory import whole_format
from vila_mc.convert.read_parts import read_language, read_vision
from vila_mc.convert.tokenizer_source import chat_template_beside
from vila_mc.convert.weights import read_json
from vila_mc.errors import CheckpointError


def describe(path: Path, *, trust_pickle: bool = False) -> Iterator[tuple[str, str]]:
    """Facts about a checkpoint, as label and text.

    Args:
        path: a step-* directory of ours or one that holds some, or a directory with a config.json.
        trust_pickle: whether weights may be looked at in ``.bin`` files.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    if not (path / "config.json").exists():
        yield from _ours(path)
        return
    where = path / "config.json"
    config = ConfigValues(read_json(where), where)
    format = whole_format(config)
    if format is not None:
        whole = format.read(path, config, None, trust_pickle=trust_pickle)
        yield "what", f"a whole model, {whole.kind}"
        yield from _model(whole.model)
        yield "chat template", _template_beside(whole.tokenizer_dir)
        yield from _tensors(whole.tensors)
    elif config.get("model_type") in tuple(towers_by_type()):
        vision, tensors = read_vision(path, trust_pickle=trust_pickle)
        yield "what", "a vision tower"
        yield "vision", _vision(vision)
        yield from _tensors(tensors)
    else:
        language, tensors = read_language(path, trust_pickle=trust_pickle)
        yield "what", "a language model, llm"
        yield "language", _language(language)
        yield from _tensors(tensors)


def _require_sizes(directory: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else 0
        if found != record.num_bytes:
            raise CheckpointError(
                f"{directory} is damaged: {name} has {found:,} of {record.num_bytes:,} bytes. Use "
                "an older step-* directory."
            )


def _ours(path: Path) -> Iterator[tuple[str, str]]:
    directory = resolve_checkpoint(path)
    manifest = Manifest.read(directory)
    _require_sizes(directory, manifest)
    yield "what", f"a training checkpoint, {directory}"
    yield "step", f"{manifest.step:,} ({manifest.samples_seen:,} samples)"
    yield "layout", f"{manifest.layout or 'one process'}; any layout can read it"
    if manifest.step:
        yield "computed in", manifest.computed_in()
    yield "written by", manifest.written_by()
    yield from _model(manifest.config.model)
    recorded = template_of(manifest)
    yield "chat template", "not recorded" if recorded is None else shown(recorded)
    yield from _adapters(directory, manifest)
    yield from _tensors(open_whole(directory, manifest))
    size = sum(file.stat().st_size for file in directory.iterdir())
    yield "on disk", f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"


def _adapters(directory: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    lora = manifest.config.lora
    for part in lora.parts():
        targets = ", ".join(lora.targets_of(part))
        yield f"{part} adapters", f"rank {lora.rank}, alpha {lora.resolved_alpha():g}, on {targets}"
    base = base_directory(directory, manifest)
    if base is not None:
        yield "beside", f"the weights of {base}, which are not kept again"


def _template_beside(directory: Path) -> str:
    ours = published_template(directory, None)
    if ours is not None:
        return shown(ours.describe())
    return "none" if chat_template_beside(directory) is None else "tokenizer"


def _model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "vision", _vision(model.vision)
    square = "image" if model.vision.most_tiles() == 1 else "tile"
    tokens = f"{model.visual_tokens()} visual tokens per {square}"
    yield "connector", f"{model.connector.title()}, {tokens}"
    yield "language", _language(model.language)


def _vision(vision: VisionConfig) -> str:
    return (
        f"{vision.family}, {vision.layers} layers ({vision.built_layers()} used), width "
        f"{vision.width}, {vision.heads} heads, {vision.image_size} px in {vision.grid()} x "
        f"{vision.grid()} patches, images {vision.images_become()}"
    )


def _language(language: LanguageConfig) -> str:
    rope = language.rope
    scaling = "" if rope.scaling == "none" else f", rope {rope.scaling} x {rope.factor:g}"
    tied = ", tied embeddings" if language.tied_embeddings else ""
    heads = f"{language.heads} heads"
    rows = f"{language.padded_vocab():,} rows in training"
    if language.head_width is not None:
        heads += f" {language.head_width} wide"
    return (
        f"{language.family}, {language.layers} layers, width {language.width}, {heads} / "
        f"{language.kv_heads} key-value heads, vocabulary {language.vocab_size:,} ({rows}), "
        f"{language.max_positions:,} positions{scaling}{tied}"
    )


def _tensors(tensors: LazyTensors) -> Iterator[tuple[str, str]]:
    for part in MODEL_PARTS:
        own = [tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")]
        if own:
            count = sum(math.prod(tensor.shape) for tensor in own)
            formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in own})
            yield f"{part} weights", f"{count:,} in {len(own)} tensors, {' and '.join(formats)}"
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    yield "weights", f"{total:,}"

"""Write a whole model as a Hugging Face directory that transformers loads with remote code."""

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vila_mc.checkpoint.hf.configs import (
    DTYPE_NAMES,
    MODEL_TYPE,
    model_json,
    preprocessor_json,
    processor_json,
)
from vila_mc.checkpoint.hf.convert import to_hf
from vila_mc.checkpoint.hf.tokenizer_files import BOS, EOS, load_convertible, write_tokenizer
from vila_mc.checkpoint.hf.weights import write_weights
from vila_mc.config.model import ModelConfig
from vila_mc.errors import CheckpointError

MANIFEST = "vila_export.json"
"""Lists the files of an export: what may be replaced, and nothing else."""
DEFAULT_SHARD_BYTES = 5 * 10**9

_REMOTE_CODE = (
    "configuration_vila.py",
    "modeling_vila.py",
    "image_processing_vila.py",
    "processing_vila.py",
    "chat_template.jinja",
)


def export_hf(
    canonical_state: Mapping[str, Tensor],
    model: ModelConfig,
    tokenizer_path: Path,
    output: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write weights, configs, remote code, processor, tokenizer and model card.

    The directory appears whole or not at all. Run ``verify_export`` on it before relying on it.

    Args:
        canonical_state: every parameter of a whole ``VilaModel``.
        model: its shape.
        tokenizer_path: the SentencePiece ``.model`` that the data was made with.
        output: directory to write; an earlier export there is replaced.
        dtype: float32 or bfloat16.
        max_shard_bytes: most bytes in one weight file.

    Raises:
        CheckpointError: the state does not fit the model, the tokenizer cannot be converted, or
            something that is not an export of ours stands at ``output``.
    """
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"an export cannot be {dtype}; choose {' or '.join(DTYPE_NAMES.values())}."
        )
    _check_replaceable(output)
    tokenizer = load_convertible(tokenizer_path, model.language.vocab_size)
    bos, eos = tokenizer.special(BOS), tokenizer.special(EOS)
    assert bos is not None, "load_convertible checks it"
    assert eos is not None, "load_convertible checks it"
    # Padding is masked; EOS serves because Llama's tokenizer has no padding token.
    token_ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    state = to_hf(canonical_state, model)

    partial = output.with_name(f".{output.name}.partial")
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        write_weights(state, partial, dtype, max_shard_bytes)
        write_tokenizer(tokenizer, partial, model.language.max_positions)
        shutil.copyfile(tokenizer_path, partial / "tokenizer.model")
        for name in _REMOTE_CODE:
            _write_text(partial / name, _packaged_text(name))
        _write_json(partial / "config.json", model_json(model, dtype, token_ids))
        _write_json(partial / "generation_config.json", {**token_ids, "do_sample": False})
        _write_json(partial / "preprocessor_config.json", preprocessor_json(model.vision))
        _write_json(partial / "processor_config.json", processor_json(model))
        _write_text(partial / "README.md", _model_card(model, state))
        files = sorted([path.name for path in partial.iterdir()] + [MANIFEST])
        _write_json(partial / MANIFEST, {"model_type": MODEL_TYPE, "files": files})
        _replace(partial, output)
    finally:
        _remove(partial)


def _check_replaceable(output: Path) -> None:
    """Refuse to write over anything but an export of ours."""
    if not output.exists() and not output.is_symlink():
        return
    advice = "Choose another directory, or remove it yourself."
    if output.is_symlink() or not output.is_dir():
        raise CheckpointError(f"{output} exists and is not a directory. {advice}")
    present = {path.name for path in output.iterdir()}
    if not present:
        return
    if MANIFEST not in present:
        raise CheckpointError(f"{output} holds files that no export wrote. {advice}")
    try:
        ours = set(json.loads((output / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{output / MANIFEST} is damaged. {advice}") from None
    if foreign := sorted(present - ours):
        raise CheckpointError(
            f"{output} holds {foreign[0]}, which no export wrote. Move it away, or choose another "
            "directory."
        )


def _replace(partial: Path, output: Path) -> None:
    """Put the finished directory in place; the old one stays if that fails."""
    if not output.exists():
        partial.rename(output)
        return
    old = output.with_name(f".{output.name}.old")
    _remove(old)
    output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        old.rename(output)
        raise
    _remove(old)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _packaged_text(name: str) -> str:
    folder = resources.files("vila_mc.checkpoint.hf") / "remote_code"
    return (folder / name).read_text(encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _model_card(model: ModelConfig, state: Mapping[str, Tensor]) -> str:
    """README.md: what it is and how to run it."""
    language, vision = model.language, model.vision
    parameters = sum(tensor.numel() for tensor in state.values())
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vila]
---
# VILA

A vision-language model after VILA (arXiv 2312.07533), {parameters:,} parameters: a CLIP tower
({vision.built_layers()} layers, {vision.image_size} px, images made square by
"{vision.image_mode}"), a `{model.connector.kind}` connector with {model.visual_tokens()} visual
tokens per image, and a Llama ({language.layers} layers, width {language.width}).

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

directory = "."  # where this file is
model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)

image = Image.open("photo.jpg")
question = [{{"type": "image", "image": image}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

For plain prompts call `processor(images=[...], text="<image>\\n...")`: each `<image>` stands for
one image, and nothing else in the text is special. License, data and evaluation are for whoever
trained the weights to state.
"""

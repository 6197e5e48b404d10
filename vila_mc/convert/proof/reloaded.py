"""Models that transformers loads as a user would, behind one face.

Each format loads its own directories with what stands here, in the fresh process of a proof.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vila_mc.checkpoint.streamed_module import parameters_without_memory, stream_weights
from vila_mc.convert.weights import open_weights, read_json


class ModelFaultError(Exception):
    """What is wrong with a directory, in a sentence."""


class LoadedModel(Protocol):
    """A reloaded model that computes in fp32."""

    model: Any
    """Generates text."""
    processor: Any
    """Makes inputs for ``model`` of text and images; None without one."""
    vocab_size: int
    """Tokens whose logits are compared. As a token id, the placeholder of a visual token."""

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        """Logits [b, s, v or more] of ids [b, s] with placeholders and uint8 [n, 3, y, x]."""

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        """Greedy continuation [b, length] of every row, on beyond the end of the sequence."""


def _same_name(name: str) -> str:
    return name


def load_model(
    model_class: Any,
    directory: Path,
    is_streamed: bool,
    file_name: Callable[[str], str] = _same_name,
    **options: Any,
) -> Any:
    """A model in fp32, whole or streamed; ``file_name`` turns its parameters' names into files'.

    Raises:
        ModelFaultError: weights are missing, or there are some that have no place.
    """
    if not is_streamed:
        model, report = model_class.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, **options
        )
        if faults := {name: sorted(map(str, keys)) for name, keys in report.items() if keys}:
            raise ModelFaultError(f"the weights do not match the model: {faults}")
        return model.eval()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, **options)
    with parameters_without_memory():
        make = getattr(model_class, "from_config", None) or model_class._from_config
        model = make(config, dtype=torch.float32, **options)
    tensors = open_weights(directory)
    sources: dict[str, str] = model.all_tied_weights_keys  # of tied parameters, also of parts

    def read(name: str) -> Tensor:
        found = tensors.get(file_name(name)) or tensors.get(file_name(sources.get(name, name)))
        if found is None:
            raise ModelFaultError(f"the weights do not match the model: no {file_name(name)}")
        return found.read()

    used = {file_name(name) for name, _ in model.named_parameters()}
    if surplus := sorted(tensors.keys() - used):
        raise ModelFaultError(f"the weights do not match the model: {surplus[0]} is not used")
    stream_weights(model, read)
    return model.eval()


def normalise(images: Tensor, preprocessor: dict[str, Any]) -> Tensor:
    """Pixels [n, 3, y, x] of uint8 as a preprocessor_config.json has them."""
    mean, std = (
        torch.tensor(preprocessor[name]).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    return (images.float() / 255.0 - mean) / std


def generate(model: Any, token_ids: Tensor, length: int, **inputs: Tensor) -> Tensor:
    """transformers' own generation with its cache, which no token ends."""
    settings, kept = model.generation_config, model.generation_config.eos_token_id
    settings.eos_token_id = None
    ids: Tensor = model.generate(
        **inputs,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=length,
        do_sample=False,
    )
    settings.eos_token_id = kept
    return ids


class TransformersModel:
    """A model of transformers; it looks at images if its directory has a preprocessor."""

    def __init__(
        self,
        directory: Path,
        vocab_size: int,
        model: Any,
        image_token: int,
        processor: Any = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.model = model
        self.processor = processor
        self._image_token = image_token
        preprocessor = directory / "preprocessor_config.json"
        self._preprocessor = read_json(preprocessor) if preprocessor.exists() else None

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.model(**self._inputs(token_ids, images)).logits
        return logits

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        ids = generate(self.model, token_ids, length, **self._inputs(token_ids, images))
        return ids[:, token_ids.shape[1] :]

    def _inputs(self, token_ids: Tensor, images: Tensor) -> dict[str, Tensor]:
        is_image = token_ids == self.vocab_size
        inputs = {"input_ids": token_ids.masked_fill(is_image, self._image_token)}
        if len(images):
            assert self._preprocessor is not None
            inputs["pixel_values"] = normalise(images, self._preprocessor)
        return inputs

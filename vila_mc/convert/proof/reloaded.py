"""The exports of every format, loaded by transformers as a user would, behind one face.

Runs in the fresh process of a proof. A format that transformers has no class for (the public VILA
code's) is put together here from its parts, by formulas of its own.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_mc.checkpoint.streamed_module import parameters_without_memory, stream_weights
from vila_mc.convert.weights import open_weights, read_json


class ExportFaultError(Exception):
    """What is wrong with an export, in a sentence."""


class LoadedExport(Protocol):
    """A reloaded export that computes in fp32."""

    vocab_size: int
    """Tokens whose logits are compared. As a token id, the placeholder of a visual token."""

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        """Logits [b, s, v or more] of ids [b, s] with placeholders and uint8 [n, 3, y, x]."""

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        """Greedy continuation [b, length] of every row, on beyond the end of the sequence."""


def load_export(directory: Path, kind: str, *, is_streamed: bool, vocab_size: int) -> LoadedExport:
    """Load an export.

    Args:
        directory: the export.
        kind: its format.
        is_streamed: read weights from disk as they are used instead of loading them.
        vocab_size: tokens of the training model's vocabulary.

    Raises:
        ExportFaultError: weights are missing, or there are some that have no place.
    """
    loaders: dict[str, Callable[[Path, bool, int], LoadedExport]] = {
        "hf-vila": _RemoteCode,
        "hf-llava": _Llava,
        "vila": _Official,
        "llm": _Language,
    }
    return loaders[kind](directory, is_streamed, vocab_size)


def _same_name(name: str) -> str:
    return name


def _load(
    model_class: Any,
    directory: Path,
    is_streamed: bool,
    file_name: Callable[[str], str] = _same_name,
    **options: Any,
) -> Any:
    """A model in fp32, whole or streamed; ``file_name`` turns its parameters' names into files'."""
    if not is_streamed:
        model, report = model_class.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, **options
        )
        if faults := {name: sorted(map(str, keys)) for name, keys in report.items() if keys}:
            raise ExportFaultError(f"the weights do not match the model: {faults}")
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
            raise ExportFaultError(f"the weights do not match the model: no {file_name(name)}")
        return found.read()

    used = {file_name(name) for name, _ in model.named_parameters()}
    if surplus := sorted(tensors.keys() - used):
        raise ExportFaultError(f"the weights do not match the model: {surplus[0]} is not used")
    stream_weights(model, read)
    return model.eval()


def _normalise(images: Tensor, preprocessor: dict[str, Any]) -> Tensor:
    mean, std = (
        torch.tensor(preprocessor[name]).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    return (images.float() / 255.0 - mean) / std


def _generate(model: Any, token_ids: Tensor, length: int, **inputs: Tensor) -> Tensor:
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


class _Transformers:
    """What transformers itself can run: text, and images where the model has eyes."""

    def __init__(self, directory: Path, vocab_size: int, model: Any, image_token: int) -> None:
        self.vocab_size = vocab_size
        self.model = model
        self._image_token = image_token
        preprocessor = directory / "preprocessor_config.json"
        self._preprocessor = read_json(preprocessor) if preprocessor.exists() else None

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.model(**self._inputs(token_ids, images)).logits
        return logits

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        ids = _generate(self.model, token_ids, length, **self._inputs(token_ids, images))
        return ids[:, token_ids.shape[1] :]

    def _inputs(self, token_ids: Tensor, images: Tensor) -> dict[str, Tensor]:
        is_image = token_ids == self.vocab_size
        inputs = {"input_ids": token_ids.masked_fill(is_image, self._image_token)}
        if len(images):
            assert self._preprocessor is not None
            inputs["pixel_values"] = _normalise(images, self._preprocessor)
        return inputs


class _RemoteCode(_Transformers):
    """hf-vila: the directory's own modelling file."""

    def __init__(self, directory: Path, is_streamed: bool, vocab_size: int) -> None:
        from transformers import AutoModelForImageTextToText

        model = _load(AutoModelForImageTextToText, directory, is_streamed, trust_remote_code=True)
        super().__init__(directory, vocab_size, model, model.config.image_token_id)


class _Llava(_Transformers):
    """hf-llava: LlavaForConditionalGeneration."""

    def __init__(self, directory: Path, is_streamed: bool, vocab_size: int) -> None:
        from transformers import LlavaForConditionalGeneration

        model = _load(LlavaForConditionalGeneration, directory, is_streamed, self._file_name)
        super().__init__(directory, vocab_size, model, model.config.image_token_id)

    @staticmethod
    def _file_name(name: str) -> str:
        for inside, published in (
            ("lm_head.", "language_model.lm_head."),
            ("model.language_model.", "language_model.model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.", ""),
        ):
            if name.startswith(inside):
                return published + name.removeprefix(inside)
        return name


class _Language(_Transformers):
    """llm: the language model alone."""

    def __init__(self, directory: Path, is_streamed: bool, vocab_size: int) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__(
            directory, vocab_size, _load(AutoModelForCausalLM, directory, is_streamed), -1
        )


class _Official:
    """vila: three directories. The connector is computed from the published description of it."""

    def __init__(self, directory: Path, is_streamed: bool, vocab_size: int) -> None:
        from transformers import AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

        self.vocab_size = vocab_size
        self.model = _load(AutoModelForCausalLM, directory / "llm", is_streamed)
        tower = directory / "vision_tower"
        is_clip = read_json(tower / "config.json")["model_type"] == "clip_vision_model"
        tower_class = CLIPVisionModel if is_clip else SiglipVisionModel
        self._tower = _load(tower_class, tower, is_streamed, "vision_model.{}".format)
        self._preprocessor = read_json(tower / "preprocessor_config.json")
        config = read_json(directory / "config.json")
        self._select = config["mm_vision_select_layer"]
        # As the public code does it, whatever the tower is.
        self._first_patch = 1 if config["mm_vision_select_feature"] == "patch" else 0
        projector = directory / "mm_projector"
        self._kind = read_json(projector / "config.json")["mm_projector_type"]
        self._layers = {n: t.read().float() for n, t in open_weights(projector).items()}

    def logits(self, token_ids: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=self._embed(token_ids, images)).logits
        return logits

    def greedy(self, token_ids: Tensor, images: Tensor, length: int) -> Tensor:
        embeds = self._embed(token_ids, images)
        return _generate(self.model, token_ids, length, inputs_embeds=embeds)

    def _embed(self, token_ids: Tensor, images: Tensor) -> Tensor:
        is_image = token_ids == self.vocab_size
        embeds: Tensor = self.model.get_input_embeddings()(token_ids.masked_fill(is_image, 0))
        if len(images):
            pixels = _normalise(images, self._preprocessor)
            states = self._tower(pixels, output_hidden_states=True).hidden_states[self._select]
            embeds[is_image] = self._connect(states[:, self._first_patch :]).flatten(0, 1)
        return embeds

    def _connect(self, patches: Tensor) -> Tensor:
        layers = self._layers

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, layers[f"{name}.weight"], layers[f"{name}.bias"])

        if self._kind == "linear":
            return linear(patches, "layers")
        if self._kind == "mlp2x_gelu":
            return linear(F.gelu(linear(patches, "layers.0")), "layers.2")
        x = _blocks_of_two(patches)
        x = F.layer_norm(x, x.shape[-1:], layers["layers.1.weight"], layers["layers.1.bias"])
        return linear(F.gelu(linear(x, "layers.2")), "layers.4")


def _blocks_of_two(patches: Tensor) -> Tensor:
    """2 x 2 patches side by side: upper left, upper right, lower left, lower right."""
    side = math.isqrt(patches.shape[1])
    grid = patches.reshape(len(patches), side, side, -1)
    if side % 2:
        grid = F.pad(grid, (0, 0, 0, 1, 0, 1))
    corners = [grid[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    return torch.cat(corners, dim=-1).flatten(1, 2)

"""Models that transformers loads as a user would, behind one face.

Each format loads its own directories with what stands here, in the fresh process of a proof.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vila_mc.checkpoint.streamed_module import parameters_without_memory, stream_weights
from vila_mc.convert.families.registry import towers_by_type
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


@dataclass(frozen=True, slots=True)
class Loading:
    """How a proof loads a directory. Goes to the fresh process as JSON."""

    is_streamed: bool = False
    """Read weights from disk as they are used instead of loading them."""
    is_ours: bool = True
    """Whether we wrote it. Then every weight has its place; others hold some that nothing reads."""
    rounds_to_bf16: bool = False
    """Whether weights are rounded."""
    trust_pickle: bool = False
    """Whether weights may be read from ``.bin`` files."""
    trusts_code: bool = False
    """Whether modelling files that are not ours may run."""
    pixel_statistics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """``image_mean`` and ``image_std``, where the directory does not say."""

    token_order: str | None = None
    """How a connector's visual tokens follow each other, where the directory does not say."""

    def rounded(self, weight: Tensor) -> Tensor:
        """A weight as the other side of the proof has it."""
        return weight.to(torch.bfloat16) if self.rounds_to_bf16 else weight

    def preprocessor(self, directory: Path) -> dict[str, Any]:
        """The directory's preprocessor_config.json, or what stands for it."""
        path = directory / "preprocessor_config.json"
        return {**self.pixel_statistics, **(read_json(path) if path.exists() else {})}


def _same_name(name: str) -> str:
    return name


def load_model(
    model_class: Any,
    directory: Path,
    loading: Loading,
    bare_name: Callable[[str], str] = _same_name,
) -> Any:
    """A model in fp32, whole or streamed.

    Args:
        model_class: of transformers.
        directory: holds its config and weights.
        loading: how.
        bare_name: makes equal the names of a weight in files and inside the model.

    Raises:
        ModelFaultError: weights are missing, or there are some that have no place.
    """
    if loading.is_streamed:
        return _load_streamed(model_class, directory, loading, bare_name)
    model, report = model_class.from_pretrained(
        directory,
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=None if loading.trust_pickle else True,
        trust_remote_code=loading.trusts_code,
    )
    faults = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    if faults and loading.is_ours:
        raise ModelFaultError(f"the weights do not match the model: {faults}")
    for weight in model.parameters():
        weight.data = loading.rounded(weight.data).float()
    return model.eval()


def with_peft_adapters(model: Any, adapters: Path) -> Any:
    """A model of transformers with the adapters of a directory of PEFT, as their users load them.

    Raises:
        ModelFaultError: the directory holds others than those that the model then has.
    """
    from safetensors.torch import load_file

    peft: Any = import_module("peft")
    adapted = peft.PeftModel.from_pretrained(model, adapters, low_cpu_mem_usage=False)
    given = load_file(adapters / "adapter_model.safetensors").keys()
    if faults := sorted(given ^ peft.get_peft_model_state_dict(adapted).keys()):
        raise ModelFaultError(f"PEFT does not find a place for each of the adapters: {faults[:3]}")
    return adapted.eval()


def load_tower(directory: Path, loading: Loading) -> Any:
    """The vision tower of a directory, whose model may have a text side that is left out.

    Raises:
        ModelFaultError: as ``load_model``.
    """
    import transformers

    kind = towers_by_type()[read_json(directory / "config.json")["model_type"]]
    tower_class = getattr(transformers, kind.architecture)
    return load_model(tower_class, directory, loading, lambda n: n.removeprefix("vision_model."))


def _load_streamed(
    model_class: Any, directory: Path, loading: Loading, bare_name: Callable[[str], str]
) -> Any:
    from transformers import AutoConfig

    config_class = getattr(model_class, "config_class", AutoConfig)  # Auto classes have none
    trust = {"trust_remote_code": True} if loading.trusts_code else {}
    config = config_class.from_pretrained(directory, **trust)
    with parameters_without_memory():
        make = getattr(model_class, "from_config", None) or model_class._from_config
        model = make(config, dtype=torch.float32, **trust)
    stored = open_weights(directory, trust_pickle=loading.trust_pickle)
    tensors = {bare_name(name): tensor for name, tensor in stored.items()}
    sources: dict[str, str] = model.all_tied_weights_keys  # of tied parameters, also of parts

    def read(name: str) -> Tensor:
        found = tensors.get(bare_name(name)) or tensors.get(bare_name(sources.get(name, name)))
        if found is None:
            raise ModelFaultError(f"the weights do not match the model: no {bare_name(name)}")
        return loading.rounded(found.read())

    used = {bare_name(name) for name, _ in model.named_parameters()}
    if loading.is_ours and (surplus := sorted(tensors.keys() - used)):
        raise ModelFaultError(f"the weights do not match the model: {surplus[0]} is not used")
    stream_weights(model, read)
    return model.eval()


def normalise(images: Tensor, preprocessor: Mapping[str, Any]) -> Tensor:
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


def logits_of_vocabulary(
    loaded: LoadedModel, reference: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits of the vocabulary [b, s, v], and what they should be.

    Raises:
        ModelFaultError: there are logits of fewer tokens.
    """
    logits = loaded.logits(reference["token_ids"], reference["images"])
    expected, used = reference["logits"], loaded.vocab_size
    for name, given in (("reference", expected), ("directory", logits)):
        if given.shape[-1] < used:
            raise ModelFaultError(
                f"the {name} has logits of {given.shape[-1]} tokens, the model of {used}. Give "
                "the logits of the whole vocabulary."
            )
    return logits[..., :used], expected[..., :used]


class TransformersModel:
    """A model of transformers, with what normalises its pixels where it sees images."""

    def __init__(
        self,
        model: Any,
        vocab_size: int,
        image_token: int = -1,
        preprocessor: Mapping[str, Any] | None = None,
        processor: Any = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.model = model
        self.processor = processor
        self._image_token = image_token
        self._preprocessor = preprocessor

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

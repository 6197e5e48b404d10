"""What public_vila.py runs in the environment of the public VILA code: load, compute, save.

Each folder holds an ``export`` and ``reference.safetensors``, and gets a ``result.json`` and
``saved``. Replaced, because they need a GPU or serve other models: the packages in ``EMPTY`` by
empty ones, and FlashAttention in SigLIP by torch's own attention. The model code is the public one.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

EMPTY = {"cv2", "datasets", "deepspeed", "flash_attn", "matplotlib", "ps3", "s2wrapper", "timm"}


class _Empty(types.ModuleType):
    """Whatever is imported from it is an empty class."""

    __path__ = ()  # type: ignore[assignment]

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _EmptyPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in EMPTY:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", help="of the public code")
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.checkout)
    sys.meta_path.insert(0, _EmptyPackages())
    load = transformers.PreTrainedModel.from_pretrained.__func__

    def without_flash_attention(cls: Any, *given: Any, **options: Any) -> Any:
        if options.get("attn_implementation") == "flash_attention_2":
            del options["attn_implementation"]
        return load(cls, *given, **options)

    transformers.PreTrainedModel.from_pretrained = classmethod(without_flash_attention)
    for name in ("torch", "transformers"):
        print(name, sys.modules[name].__version__)
    for folder in arguments.folders:
        result = read(folder)
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Compare what the public code loads and computes with the reference."""
    from llava.model.builder import load_pretrained_model

    reference = load_file(folder / "reference.safetensors")
    tokenizer, model, _, _ = load_pretrained_model(str(folder / "export"), "vila", device="cpu")
    model.float()
    state = model.state_dict()
    different = 0
    for name, weight in reference.items():
        if name.startswith("weight."):
            found = state.get(name[len("weight.") :])
            # Rows after ours belong to tokens that its loader adds.
            different += found is None or not torch.equal(weight, found[: len(weight)])
    logits = compute(model, tokenizer.media_token_ids["image"], reference)
    model.save_pretrained(str(folder / "saved"))
    return {
        "different": different,
        "max": (logits - reference["logits"]).abs().max().item(),
    }


def compute(model: Any, image_token: int, reference: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [b, s, v] of rows of text with one image each."""
    num_tokens = reference["logits"].shape[-1]
    rows = []
    for ids, pixels in zip(reference["token_ids"], reference["pixels"], strict=True):
        places = (ids == num_tokens).nonzero().flatten()
        start, end = places[0].item(), places[-1].item() + 1
        marked = torch.cat([ids[:start], torch.tensor([image_token]), ids[end:]])
        with torch.inference_mode():
            output = model(input_ids=marked[None], media={"image": [pixels]})
        rows.append(output.logits[0, :, :num_tokens])
    return torch.stack(rows)


if __name__ == "__main__":
    main()

"""In the fresh process: whether the source of an import computes what the import does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.proof.fresh_request import TENSORS
from vila_mc.convert.proof.packaged_code import require_packaged_code
from vila_mc.convert.proof.reloaded import Loading, load_tower, logits_of_vocabulary, normalise
from vila_mc.convert.weights import open_weights
from vila_mc.data.image_codec import open_image

_POSITIONS = ".position_embedding.weight"

Check = Callable[[Path, Path, dict[str, Any]], dict[str, Any]]


def _source_logits(source: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    reference = load_file(request / TENSORS)
    loading = Loading(**wanted["loading"])
    loaded = find_format(wanted["format"]).load(source, loading, wanted["vocab_size"])
    return _relative_difference(*logits_of_vocabulary(loaded, reference))


def _source_features(source: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    reference = load_file(request / TENSORS)
    loading = Loading(**wanted["loading"])
    tower = load_tower(source, loading)
    pixels = normalise(reference["images"], loading.preprocessor(source))
    options: dict[str, Any] = {}
    if wanted["interpolates"]:
        _round_after_interpolation(tower, source, loading)
        options["interpolate_pos_encoding"] = True
    states = tower(pixels, output_hidden_states=True, **options).hidden_states
    features = states[wanted["select_layer"]]
    return _relative_difference(features, reference["features"])


def _round_after_interpolation(tower: Any, source: Path, loading: Loading) -> None:
    """Have transformers' own interpolation begin from weights as they are in the files, as the
    import's does, and round what comes of it."""
    (name,) = (name for name, _ in tower.named_parameters() if name.endswith(_POSITIONS))
    stored = {
        key.removeprefix("vision_model."): tensor
        for key, tensor in open_weights(source, trust_pickle=loading.trust_pickle).items()
    }
    embeddings = tower.get_submodule(name.removesuffix(_POSITIONS))
    tower.get_parameter(name).data = stored[name.removeprefix("vision_model.")].read().float()
    interpolate = embeddings.interpolate_pos_encoding
    embeddings.interpolate_pos_encoding = lambda *given: loading.rounded(
        interpolate(*given)
    ).float()


def _relative_difference(given: Tensor, expected: Tensor) -> dict[str, Any]:
    """Large numbers differ by more than small ones: differences are relative to 1 + size."""
    if given.shape != expected.shape:
        return {"fault": f"the shape is {list(given.shape)} instead of {list(expected.shape)}."}
    difference = (given - expected).abs() / (1 + expected.abs())
    return {"max_difference": difference.max().item(), "mean_difference": difference.mean().item()}


def _source_pixels(source: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoImageProcessor

    if wanted["has_own_code"]:
        require_packaged_code(source)
    processor = AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=wanted["has_own_code"]
    )
    expected = load_file(request / TENSORS)
    for name in wanted["images"]:
        image = open_image((request / name).read_bytes(), name)
        square = _as_the_public_code_does(image, wanted["squares_first"], processor)
        given = torch.as_tensor(processor(square, return_tensors="pt")["pixel_values"])
        ours = expected[name]
        if given.shape != ours.shape:
            return {"fault": f"its images are {list(given.shape)}, ours {list(ours.shape)}."}
        difference = (given - ours).abs().max().item()
        if not difference <= wanted["tolerance"]:
            return {
                "fault": f"its image processor makes other pixels of an image of {name} than "
                f"ours: greatest difference {difference:.2e} once normalised."
            }
    return {"num_equal": f"{len(wanted['images'])} images"}


def _as_the_public_code_does(image: Image.Image, mode: str | None, processor: Any) -> Image.Image:
    """How the public VILA code makes an image square before its processor sees it."""
    if mode == "resize":
        side = (getattr(processor, "crop_size", None) or processor.size)["height"]
        return image.resize((side, side))
    if mode == "pad":
        longest = max(image.size)
        colour = tuple(int(value * 255) for value in processor.image_mean)
        canvas = Image.new("RGB", (longest, longest), colour)
        canvas.paste(image, tuple((longest - side) // 2 for side in image.size))  # type: ignore[arg-type]
        return canvas
    return image


def _source_tokens(source: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    encode, bos, eos = _own_tokenizer(source)
    for text, ids in zip(wanted["texts"], wanted["ids"], strict=True):
        if (given := encode(text)) != ids:
            return {"fault": f"its tokenizer reads {text!r} as {given} instead of {ids}."}
    if eos != wanted["eos_id"] or bos not in (wanted["bos_id"], None):
        return {
            "fault": f"its tokenizer begins texts with token {bos} and ends them with {eos}, ours "
            f"with {wanted['bos_id']} and {wanted['eos_id']}."
        }
    return {"num_equal": f"{len(wanted['texts'])} texts"}


def _own_tokenizer(source: Path) -> tuple[Callable[[str], list[int]], int | None, int | None]:
    """What reads text without special tokens, and the ids that begin and end a sequence."""
    path = source / "tokenizer.model"
    if path.exists() and not (source / "tokenizer.json").exists():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return model.encode, model.bos_id(), model.eos_id()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    return encode, tokenizer.bos_token_id, tokenizer.eos_token_id


def _if_it_loads(check: Check) -> Check:
    """The same, with what keeps a foreign directory from being loaded told by name."""

    def run(source: Path, request: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        from transformers import __version__

        try:
            return check(source, request, wanted)
        except Exception as error:  # transformers raises nearly anything
            said = " ".join(str(error).split())[:200]
            reason = f"transformers {__version__} cannot load {source}"
            return {"unproven": f"{reason} ({type(error).__name__}: {said})"}

    return run


SOURCE_CHECKS = {
    "logits": _if_it_loads(_source_logits),
    "features": _if_it_loads(_source_features),
    "pixels": _if_it_loads(_source_pixels),
    "tokens": _if_it_loads(_source_tokens),
}
"""Each takes the directory, the folder of the request and its values, and gives a result."""

"""What a trained model computes, for an export to be compared with."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.streamed_module import stream_weights
from vila_mc.checkpoint.whole import weightless_model, whole_model
from vila_mc.config.model import ModelConfig
from vila_mc.config.run import RunConfig
from vila_mc.config.train import MODEL_PARTS
from vila_mc.convert.families.language import WORD_EMBEDDINGS
from vila_mc.convert.merge_adapters import merged
from vila_mc.convert.proof.compare import ProofPrompt, Reference
from vila_mc.convert.weights import read_json
from vila_mc.data.batches.collate import collate, positions_of
from vila_mc.data.chat_templates import Template, prompt
from vila_mc.data.image_codec import MAX_IMAGE_BYTES
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.generate import generate
from vila_mc.flow import ImagePiece, Microbatch, Piece, RawImage, TextPiece
from vila_mc.foreign_files import ForeignFileError, read_foreign
from vila_mc.model.lora import fold_adapters
from vila_mc.model.vila_model import VilaModel
from vila_mc.topology.shapes import NO_ADAPTERS

_NUM_ROWS = 2
_TEXT_TOKENS = 24
_MAX_NEW_TOKENS = 16
_NUM_GREEDY = 8
_SEED = 7
_FP32_BYTES = 4
_SHARE_OF_MEMORY = 0.3
"""Both sides load the model in fp32, and there are activations."""


@dataclass(frozen=True, slots=True)
class ProvingModel:
    """A trained model in one process, ready to compute."""

    model: VilaModel
    is_streamed: bool
    """Whether its weights are read from disk as they are used."""


@contextmanager
def proving_model(
    checkpoint: Path,
    dtype: torch.dtype,
    *,
    is_streamed: bool | None = None,
    is_folded: bool = True,
) -> Iterator[ProvingModel]:
    """The model of a checkpoint in fp32, its weights rounded as an export in ``dtype`` is.

    Adapters are in the weights: by what they compute, unless it is streamed, which takes the merge
    of the export for granted.

    Args:
        checkpoint: of any layout.
        dtype: number format of the export.
        is_streamed: whether to read weights as they are used; if None, when the model in fp32 takes
            more than 30 % of the memory that is free.
        is_folded: whether adapters are in the weights; else they stand beside them, rounded too.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    directory = resolve_checkpoint(checkpoint)
    manifest = Manifest.read(directory)
    config = manifest.config
    tensors = merged(open_whole(directory, manifest), config.model, config.lora)
    if is_streamed is None:
        num_bytes = sum(math.prod(tensor.shape) for tensor in tensors.values()) * _FP32_BYTES
        is_streamed = num_bytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available
    if is_streamed:
        with weightless_model(_without_adapters(config)) as model:
            stream_weights(
                model,
                lambda name: tensors[name].read().to(dtype),
                resident=_read_by_others(model),
            )
            yield ProvingModel(model, is_streamed)
        return
    with whole_model(directory) as (model, _):
        if is_folded:
            fold_adapters(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.to(dtype))
        yield ProvingModel(model, is_streamed)


def _without_adapters(config: RunConfig) -> RunConfig:
    train = replace(config.train, trainable=MODEL_PARTS)  # adapters alone may have learned
    return replace(config, lora=NO_ADAPTERS, train=train)


def _read_by_others(model: VilaModel) -> list[str]:
    """Weights that are used outside the forward pass of the module that owns them.

    The connector's kernels take all of its weights at once; a tied embedding is the output layer's.
    """
    names = [name for name, _ in model.named_parameters() if name.startswith("connector.")]
    is_tied = model.run_config.model.language.tied_embeddings
    return [*names, *([WORD_EMBEDDINGS] if is_tied else [])]


def reference_of(
    proving: ProvingModel,
    prompts: tuple[ProofPrompt, ...] = (),
    *,
    has_images: bool = True,
    has_greedy: bool = True,
    reserved_token: int | None = None,
    vocab_size: int | None = None,
) -> Reference:
    """Logits on random tokens around random images, and how each row goes on greedily.

    Args:
        proving: the trained model. A streamed one computes the logits alone, because every new
            token would read all weights again.
        prompts: what else the export is asked, as ``answered_prompts`` makes them.
        has_images: whether the export can see.
        has_greedy: whether it is asked how the rows go on.
        reserved_token: an id that the other side takes for an image, so that no text may hold it.
        vocab_size: tokens of the other side, where it has fewer.
    """
    model = proving.model
    shape = model.run_config.model
    known = shape.language.vocab_size if vocab_size is None else vocab_size
    generator = np.random.default_rng(_SEED)
    per_image = _image_positions(shape) if has_images else 0
    length = min(2 * _TEXT_TOKENS + per_image, shape.language.max_positions - _NUM_GREEDY)
    batch = collate(
        [
            [_random_sample(shape, generator, has_images, length, known, reserved_token)]
            for _ in range(_NUM_ROWS)
        ],
        shape,
        length,
        needs_images=True,
    )
    with torch.inference_mode():
        logits_bsv = model(batch, with_loss=False)
        is_asked = has_greedy and not proving.is_streamed
        greedy = _continue(model, batch) if is_asked else None
    return Reference.of_microbatch(
        batch,
        logits_bsv,
        shape,
        prompts,
        greedy,
        is_streamed=proving.is_streamed,
        vocab_size=known,
    )


def image_token_of(directory: Path) -> int | None:
    """The token that the reader of a directory takes for an image, where text can hold it."""
    token = read_json(directory / "config.json").get("image_token_index")
    return token if isinstance(token, int) else None


def features_of(proving: ProvingModel) -> tuple[Tensor, Tensor]:
    """Random images, uint8 [n, 3, y, x], and what the tower makes of them: [n, class + p, e]."""
    vision = proving.model.run_config.model.vision
    generator = torch.Generator().manual_seed(_SEED)
    shape = (_NUM_ROWS, 3, vision.image_size, vision.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        return images, proving.model.patch_features(images).float()


def answered_prompts(
    model: VilaModel,
    tokenizer: Tokenizer,
    question: str,
    images: Sequence[Path],
    template: Template,
) -> tuple[ProofPrompt, ...]:
    """The model's greedy answers to a question about ``images``, and about a random image.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        question: put to the model.
        images: image files; may be empty.
        template: how a question is put.

    Raises:
        DataError: an image cannot be read.
    """
    noise = _random_image(model.run_config.model, np.random.default_rng(_SEED))
    prompts = [_prompt(model, tokenizer, template, question, [bytes(noise.data)])]
    if images:
        files = [_read(path) for path in images]
        prompts.insert(0, _prompt(model, tokenizer, template, question, files))
    return tuple(prompts)


def _continue(model: VilaModel, batch: Microbatch) -> Tensor:
    """The next tokens of every row, greedily: [b, k]."""
    ids: list[Tensor] = []
    tokens = batch.tokens
    for _ in range(_NUM_GREEDY):
        logits_bsv = model(replace(batch, tokens=tokens, labels=tokens), with_loss=False)
        ids.append(logits_bsv[:, -1].argmax(-1))
        tokens = torch.cat([tokens, ids[-1][:, None]], dim=1)
    return torch.stack(ids, dim=1)


def _prompt(
    model: VilaModel,
    tokenizer: Tokenizer,
    template: Template,
    question: str,
    images: Sequence[bytes],
) -> ProofPrompt:
    pieces = prompt(template, question, [RawImage(data, "an image") for data in images])
    end = AnswerEnd.of(template, tokenizer)
    (answer,) = generate(model, tokenizer, [pieces], _MAX_NEW_TOKENS, end)
    return ProofPrompt(question, tuple(images), answer, is_chat=True)


def _random_sample(
    shape: ModelConfig,
    generator: np.random.Generator,
    has_images: bool,
    length: int,
    vocab_size: int,
    reserved_token: int | None,
) -> list[Piece]:
    """Text, an image, text; or text alone; ``length`` positions."""
    num_text = length - (_image_positions(shape) if has_images else 0)

    def text(count: int) -> TextPiece:
        ids = generator.integers(3, vocab_size, count)
        if reserved_token is not None:
            ids[ids == reserved_token] = 0
        return TextPiece(ids, is_trained=True)

    if not has_images:
        return [text(num_text)]
    before = num_text // 2
    return [text(before), _random_image(shape, generator), text(num_text - before)]


def _random_image(shape: ModelConfig, generator: np.random.Generator) -> ImagePiece:
    """Noise, as large as the tower sees; of two tiles and a thumbnail, where images are cut."""
    width, height = _sides(shape)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return ImagePiece(file.getvalue(), "random", (width, height))


def _image_positions(shape: ModelConfig) -> int:
    """Positions that a random image takes."""
    return positions_of(ImagePiece(b"", "random", _sides(shape)), shape)


def _sides(shape: ModelConfig) -> tuple[int, int]:
    """One square, where images are not cut, or several would leave no room for text."""
    side = shape.vision.image_size
    has_room = 3 * shape.tile_positions() <= shape.language.max_positions // 2
    is_cut = shape.vision.image_mode == "tiles" and has_room
    return (2 * side, side) if is_cut else (side, side)


def _read(path: Path) -> bytes:
    try:
        return read_foreign(path, MAX_IMAGE_BYTES)
    except ForeignFileError as error:
        raise DataError(f"the image {path} {error}.") from None
    except OSError as error:
        raise DataError(f"the image {path} cannot be read: {error.strerror}.") from None

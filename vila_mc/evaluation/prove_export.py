"""What a trained model computes, for an export to be compared with."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vila_mc.checkpoint.hf.verify import VerifyPrompt, VerifyReference
from vila_mc.config.model import ModelConfig
from vila_mc.data.collate import collate
from vila_mc.data.conversation import IMAGE_MARKER, TemplateName, prompt
from vila_mc.data.indexed_format import StoredImage, StoredText
from vila_mc.data.tokenizer import Tokenizer
from vila_mc.errors import DataError
from vila_mc.evaluation.generate import generate
from vila_mc.flow import ImagePart, TextPart
from vila_mc.model.vila_model import VilaModel

_NUM_ROWS = 2
_TEXT_TOKENS = 24
_MAX_NEW_TOKENS = 16
_SEED = 7


def round_weights(model: VilaModel, dtype: torch.dtype) -> None:
    """Round every weight to ``dtype``, in place: an export in it then computes the same."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))


def reference_of(
    model: VilaModel,
    tokenizer: Tokenizer,
    question: str,
    images: Sequence[Path],
    template: TemplateName = "vicuna_v1",
) -> VerifyReference:
    """Logits on random tokens around random images, and greedy answers to two prompts.

    Args:
        model: a whole model in evaluation mode.
        tokenizer: what it was trained with.
        question: put to the model about ``images``, and once about a random image.
        images: image files; may be empty.

    Raises:
        DataError: an image cannot be read.
    """
    shape = model.run.model
    generator = np.random.default_rng(_SEED)
    batch = collate(
        [[_random_sample(shape, generator)] for _ in range(_NUM_ROWS)],
        shape,
        2 * _TEXT_TOKENS + shape.visual_tokens(),
        needs_images=True,
    )
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits_bsv = model(batch.to(device), with_loss=False)
    noise = _random_image(shape.vision.image_size, generator)
    prompts = [_prompt(model, tokenizer, template, question, [noise])]
    if images:
        files = [_read(path) for path in images]
        prompts.insert(0, _prompt(model, tokenizer, template, question, files))
    return VerifyReference.of_microbatch(batch, logits_bsv, shape, tuple(prompts))


def _prompt(
    model: VilaModel,
    tokenizer: Tokenizer,
    template: TemplateName,
    question: str,
    images: Sequence[bytes],
) -> VerifyPrompt:
    parts = prompt(template, question, [ImagePart(data, "an image") for data in images])
    (answer,) = generate(model, tokenizer, [parts], _MAX_NEW_TOKENS)
    text = "".join(part.text if isinstance(part, TextPart) else IMAGE_MARKER for part in parts)
    return VerifyPrompt(text=text, images=tuple(images), greedy_ids=answer)


def _random_sample(
    shape: ModelConfig, generator: np.random.Generator
) -> list[StoredText | StoredImage]:
    def text() -> StoredText:
        ids = generator.integers(3, shape.language.vocab_size, _TEXT_TOKENS)
        return StoredText(ids, is_trained=True)

    image = np.frombuffer(_random_image(shape.vision.image_size, generator), np.uint8)
    return [text(), StoredImage(image, "random"), text()]


def _random_image(size: int, generator: np.random.Generator) -> bytes:
    pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the image {path} cannot be read: {error.strerror}.") from None

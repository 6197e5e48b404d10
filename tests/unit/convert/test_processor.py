"""The exported processor gives the token ids and pixels of training."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.reference_tiles import reference_grid, reference_tiles
from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.formats.remote_code.image_processing_vila import best_grid
from vila_mc.convert.formats.write_export import write_export
from vila_mc.data.chat_templates import conversation_pieces, prompt
from vila_mc.data.images import load_image, load_squares
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.flow import RawImage, RawText
from vila_mc.kernels.reference import normalize_images

NEWLINE = 13
MODELS = {mode: tiny_model(image_mode=mode) for mode in ("crop", "pad", "resize", "tiles")}
MODELS["tiles"] = replace(
    MODELS["tiles"],
    vision=replace(MODELS["tiles"].vision, max_tiles=5, tile_newline=NEWLINE),
)


@pytest.fixture(scope="module")
def processors(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoProcessor

    loaded = {}
    for mode, model in MODELS.items():
        directory = tmp_path_factory.mktemp("processor") / mode
        write_export(lazily(build(model).canonical()), model, tokenizer_path, directory)
        loaded[mode] = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    return loaded


@pytest.fixture(scope="module")
def processor(processors: dict[str, Any]) -> Any:
    return processors["crop"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path)


@pytest.fixture
def image(photo: bytes) -> Image.Image:
    return Image.open(io.BytesIO(photo))


def _training_ids(
    pieces: Sequence[RawImage | RawText], tokenizer: Tokenizer, counts: Sequence[int] = ()
) -> list[int | None]:
    """What the data side makes of pieces: BOS, text, q placeholders per image, EOS after turns.

    With ``counts``, of so many tiles of each image, and a newline behind each tile.
    """
    tiles = iter(counts)
    texts = [piece for piece in pieces if isinstance(piece, RawText)]
    before = dict(zip(map(id, pieces[1:]), pieces, strict=False))
    goes_on = [
        isinstance(behind := before.get(id(piece)), RawText) and not behind.ends_turn
        for piece in texts
    ]
    encoded = iter(tokenizer.encode_batch([piece.text for piece in texts], goes_on))
    ids = [tokenizer.bos_id]
    for piece in pieces:
        if isinstance(piece, RawText):
            ids += next(encoded).tolist() + [tokenizer.eos_id] * piece.ends_turn
        elif counts:
            ids += ([VOCABULARY] * tiny_model().visual_tokens() + [NEWLINE]) * next(tiles)
        else:
            ids += [VOCABULARY] * tiny_model().visual_tokens()
    return ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Two dogs on the beach.",
        "<image>",
        "<image>\nWhat is this?",
        "a <image> b<image><image>  c ",
        "literal </s> and <s> stay text <image>",
        "\u00e9\u4e2d 12:30\n",
    ],
)
def test_token_ids_equal_training(
    text: str, processor: Any, tokenizer: Tokenizer, image: Image.Image
) -> None:
    chunks = text.split("<image>")
    pieces = [RawText(chunks[0], is_trained=False)]
    for chunk in chunks[1:]:
        pieces += [RawImage(b"", "image"), RawText(chunk, is_trained=False)]
    output = processor(text=text, images=[image] * (len(chunks) - 1))
    assert output["input_ids"] == [_training_ids(pieces, tokenizer)]
    assert output["attention_mask"] == [[1] * len(output["input_ids"][0])]


def test_batches_are_padded_on_the_left(processor: Any, image: Image.Image) -> None:
    output = processor(
        text=["<image>\nTwo dogs", "Two"], images=[[image], []], padding=True, return_tensors="pt"
    )
    assert output["input_ids"].shape == output["attention_mask"].shape
    assert output["attention_mask"][1, 0] == 0
    assert output["attention_mask"][1, -1] == 1
    assert output["pixel_values"].shape == (1, 3, 28, 28)
    assert "pixel_values" not in processor(text="Two", return_tensors="pt")


def test_tiles_have_the_ids_and_pixels_of_training(
    processors: dict[str, Any], tokenizer: Tokenizer
) -> None:
    """Pictures of other shapes in two prompts; also through the chat template."""
    processor, vision = processors["tiles"], MODELS["tiles"].vision
    pictures = list(_images().values())[:4]
    files = [_file(picture) for picture in pictures]
    squares = [torch.from_numpy(load_squares(file, vision)) for file in files]
    counts = [len(each) for each in squares]
    assert counts == [reference_count(picture) for picture in pictures]
    assert len(set(counts)) > 1
    opened = [Image.open(io.BytesIO(file)) for file in files]
    texts = ["<image> b<image>", "\n<image><image>c"]
    given = processor(text=texts, images=[opened[:2], opened[2:]], padding=False)
    for ids, text, mine in zip(given["input_ids"], texts, (counts[:2], counts[2:]), strict=True):
        first, *others = text.split("<image>")
        pieces: list[Any] = [RawText(first, is_trained=False)]
        for chunk in others:
            pieces += [RawImage(b"", "image"), RawText(chunk, is_trained=False)]
        assert ids == _training_ids(pieces, tokenizer, mine)
    expected = normalize_images(torch.cat(squares), torch.float32)
    assert torch.equal(torch.as_tensor(given["pixel_values"]), expected)
    asked = prompt("vicuna_v1", "<image>\nAnd <image>?", [RawImage(b"", "image")] * 2)
    content = [
        {"type": "image", "image": opened[0]},
        {"type": "text", "text": "\nAnd "},
        {"type": "image", "image": opened[1]},
        {"type": "text", "text": "?"},
    ]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert chat["input_ids"].tolist() == [_training_ids(asked, tokenizer, counts[:2])]
    assert len(chat["pixel_values"]) == sum(counts[:2])


def reference_count(picture: Image.Image) -> int:
    return len(reference_tiles(picture.convert("RGB"), 28, 5, thumbnail=True))


@pytest.mark.parametrize("name", ["wide", "tall", "square", "grey", "transparent", "palette"])
def test_pixels_of_tiles_equal_training_bit_by_bit(name: str, processors: dict[str, Any]) -> None:
    data = _file(_images()[name])
    trained = torch.from_numpy(load_squares(data, MODELS["tiles"].vision))
    given = processors["tiles"].image_processor.make_squares(Image.open(io.BytesIO(data)))
    assert torch.equal(given, trained)


@for_all(
    sides=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    size=st.sampled_from([28, 336]),
    most=st.integers(1, 20),
)
@settings(deadline=None)
def test_the_rule_of_tiles_is_that_of_training(
    sides: tuple[int, int], size: int, most: int
) -> None:
    assert best_grid(*sides, size, most) == reference_grid(*sides, size, most)


def test_markers_and_images_must_agree(processor: Any, image: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"\[1\] <image> markers, but 2 images"):
        processor(text="<image>", images=[image, image])
    with pytest.raises(ValueError, match=r"\[1\] <image> markers, but 0 images"):
        processor(text="<image>")
    with pytest.raises(ValueError, match=r"\[1, 0\] <image> markers, but \[0, 1\] images"):
        processor(text=["<image>", "a"], images=[[], [image]])
    with pytest.raises(ValueError, match="no text"):
        processor(images=image)


def test_decoding_drops_placeholders(processor: Any, image: Image.Image) -> None:
    ids = processor(text="Two dogs<image> run", images=image)["input_ids"][0]
    assert processor.decode(ids, skip_special_tokens=True).split() == ["Two", "dogs", "run"]


def _images() -> dict[str, Image.Image]:
    generator = np.random.default_rng(1)

    def pixels(*shape: int, dtype: type[Any] = np.uint8) -> Any:
        return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)

    return {
        "wide": Image.fromarray(pixels(37, 61, 3)),
        "tall": Image.fromarray(pixels(91, 17, 3)),
        "square": Image.fromarray(pixels(28, 28, 3)),
        "grey": Image.fromarray(pixels(40, 30)),
        "deep grey": Image.fromarray(pixels(40, 30, dtype=np.uint16)),
        "transparent": Image.fromarray(pixels(33, 44, 4), "RGBA"),
        "palette": Image.fromarray(pixels(50, 45, 3)).convert("P"),
    }


@pytest.mark.parametrize("mode", ["crop", "pad", "resize"])
@pytest.mark.parametrize("name", list(_images()))
def test_pixels_equal_training_bit_by_bit(mode: str, name: str, processors: dict[str, Any]) -> None:
    file = io.BytesIO()
    _images()[name].save(file, "PNG")
    trained = torch.from_numpy(load_image(file.getvalue(), 28, mode, pad_colour=(122, 116, 104)))
    image_processor = processors[mode].image_processor
    opened = Image.open(file)
    assert torch.equal(image_processor.make_square(opened), trained)
    given = processors[mode](text="<image>", images=opened, return_tensors="pt")["pixel_values"]
    assert torch.equal(given, normalize_images(trained[None], torch.float32))


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _grey16() -> Image.Image:
    return Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 54)


ODD_FILES = {
    "16 bits with a transparent grey": lambda: _file(_grey16(), transparency=540),
    "16 bits, white is 0": lambda: _file(_grey16(), "TIFF", tiffinfo={262: 0}),
    "8 bits with a transparent grey": lambda: _file(
        _grey16().point(lambda v: v / 256, "L"), transparency=9
    ),
    "palette with a transparent colour": lambda: _file(
        Image.fromarray(np.eye(30, dtype=np.uint8) * 200).convert("P"), transparency=0
    ),
    "CMYK": lambda: _file(Image.new("CMYK", (30, 20), (10, 60, 110, 30)), "JPEG"),
    "grey with transparency": lambda: _file(Image.new("LA", (30, 20), (90, 120))),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_are_shown_as_in_training(name: str, processors: dict[str, Any]) -> None:
    data = ODD_FILES[name]()
    trained = torch.from_numpy(load_image(data, 28, "resize"))
    square = processors["resize"].image_processor.make_square(Image.open(io.BytesIO(data)))
    assert torch.equal(square, trained)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_that_nobody_can_show_are_refused_as_in_training(
    mode: str, processors: dict[str, Any]
) -> None:
    image = Image.fromarray(np.ones((30, 20), np.int32 if mode == "I" else np.float32))
    with pytest.raises(ValueError, match=f"mode {mode} has no agreed brightness"):
        processors["crop"].image_processor.make_square(image)


def test_crop_is_close_to_the_clip_processor_of_transformers(
    processor: Any, image: Image.Image, tmp_path: Path
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor.image_processor.save_pretrained(tmp_path)
    clip = CLIPImageProcessorPil.from_pretrained(tmp_path)
    theirs = clip(image, return_tensors="pt")["pixel_values"]
    ours = processor.image_processor(image)["pixel_values"]
    assert (theirs - ours).abs().max() < 1e-5


TURNS = (
    Turn("user", "<image>\nWhat is this?"),
    Turn("assistant", "Two dogs </s> on the beach."),
    Turn("user", "And here: <image> or here?"),
    Turn("assistant", "There are two  spaces."),
    Turn("user", "<image><image> Which is last? <image>"),
    Turn("assistant", "The last."),
)


def _conversation(turns: Sequence[Turn], image: Image.Image) -> list[dict[str, Any]]:
    messages = []
    for turn in turns:
        content = []
        for index, chunk in enumerate(turn.text.split("<image>")):
            content += [{"type": "image", "image": image}] if index else []
            content += [{"type": "text", "text": chunk}]
        messages.append({"role": turn.role, "content": content})
    return messages


def test_chat_template_equals_training(
    processor: Any, tokenizer: Tokenizer, image: Image.Image
) -> None:
    pieces = conversation_pieces("vicuna_v1", TURNS, [RawImage(b"", "image")] * 5)
    output = processor.apply_chat_template(
        _conversation(TURNS, image), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert output["input_ids"].tolist() == [_training_ids(pieces, tokenizer)]
    assert output["pixel_values"].shape == (5, 3, 28, 28)


def test_generation_prompt_equals_training(
    processor: Any, tokenizer: Tokenizer, image: Image.Image
) -> None:
    question = [Turn("user", "<image>\nWhat is this?")]
    pieces = prompt("vicuna_v1", "What is this?", [RawImage(b"", "image")])
    messages = _conversation(question, image)
    output = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert output["input_ids"] == [_training_ids(pieces, tokenizer)]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "What is this? ASSISTANT:"
    )
    assert processor(text=text, images=image)["input_ids"] == output["input_ids"]


def test_rendered_conversation_reads_like_vicuna(processor: Any, image: Image.Image) -> None:
    text = processor.apply_chat_template(_conversation(TURNS[:2], image))
    assert text.endswith("What is this? ASSISTANT: Two dogs </s> on the beach.</s>")


def test_literal_end_of_sequence_in_a_prompt_warns(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[Any] = []
    logger = type(processor).__call__.__globals__["logger"]
    monkeypatch.setattr(logger, "warning_once", warned.append)
    ids = processor(text="a</s>b")["input_ids"][0]
    assert processor.tokenizer.eos_token_id not in ids
    assert len(warned) == 1


def test_the_tokenizer_alone_loads_without_remote_code(
    processor: Any, tokenizer: Tokenizer
) -> None:
    from transformers import AutoTokenizer

    alone = AutoTokenizer.from_pretrained(processor.tokenizer.name_or_path)
    text = " Two dogs"
    assert alone(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]

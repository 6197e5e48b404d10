"""An hf-vila export in transformers' own pipeline, processor calls and ``generate``."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.convert.independent_vila import build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.formats.write_export import write_export
from vila_mc.convert.open_model import open_model
from vila_mc.data.chat_templates import prompt
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.generate import generate
from vila_mc.flow import RawImage

NUM_TOKENS = 12
QUESTIONS = (
    ("What is this?", 1),
    ("Two dogs run on the beach at 12:30, 1995. What is it?", 3),
    ("Who?", 0),
    ("And here?", 2),
)
"""Of different lengths, with so many images in front."""


@dataclass(frozen=True)
class Export:
    """An export, what transformers loads of it, and what our own engine answers."""

    path: Path
    pipeline: Any
    greedy: list[tuple[int, ...]]
    beams: list[tuple[int, ...]]

    @property
    def model(self) -> Any:
        return self.pipeline.model

    @property
    def processor(self) -> Any:
        return self.pipeline.processor


@pytest.fixture(scope="module")
def pictures(photo: bytes) -> list[bytes]:
    found = [photo]
    for size, colour in (((30, 20), "teal"), ((28, 61), "maroon")):
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="module", params=["crop", "tiles"])
def export(
    request: pytest.FixtureRequest,
    pictures: Sequence[bytes],
    tokenizer_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    from transformers import pipeline

    model = tiny_model(image_mode=request.param)
    if request.param == "tiles":
        model = replace(model, vision=replace(model.vision, max_tiles=4, tile_newline=13))
    path = tmp_path_factory.mktemp("in_transformers") / request.param
    write_export(lazily(build(model).canonical()), model, tokenizer_path, path, torch.float32)
    loaded = pipeline("image-text-to-text", model=str(path), trust_remote_code=True)
    return Export(path, loaded, *_our_answers(path, pictures))


def _our_answers(path: Path, pictures: Sequence[bytes]) -> list[list[tuple[int, ...]]]:
    """Greedy, and of three beams."""
    with open_model(path) as (asked, _):
        prompts = [
            prompt(asked.template, words, [RawImage(data, "picture") for data in pictures[:count]])
            for words, count in QUESTIONS
        ]
        return [
            generate(asked.model, asked.tokenizer, prompts, NUM_TOKENS, choice=choice)
            for choice in (GREEDY, Choice(beams=3))
        ]


def chats(pictures: Sequence[bytes]) -> list[list[dict[str, Any]]]:
    found = []
    for words, count in QUESTIONS:
        content: list[dict[str, Any]] = [
            {"type": "image", "image": Image.open(io.BytesIO(data))} for data in pictures[:count]
        ]
        found.append([{"role": "user", "content": [*content, {"type": "text", "text": words}]}])
    return found


def inputs(export: Export, pictures: Sequence[bytes]) -> Any:
    """All questions in one batch."""
    return export.processor.apply_chat_template(
        chats(pictures),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def answers(export: Export, ids: torch.Tensor, length: int) -> list[tuple[int, ...]]:
    """Up to EOS, with it."""
    found = []
    for row in ids[:, length:].tolist():
        eos = export.processor.tokenizer.eos_token_id
        found.append(tuple(row[: row.index(eos) + 1] if eos in row else row))
    return found


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_of_a_padded_batch_are_our_own(
    use_cache: bool, export: Export, pictures: list[bytes]
) -> None:
    given = inputs(export, pictures)
    lengths = given["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == len(QUESTIONS)  # all but one have padding on the left
    assert (given["attention_mask"][:, -1] == 1).all()
    ids = export.model.generate(**given, max_new_tokens=NUM_TOKENS, use_cache=use_cache)
    assert answers(export, ids, given["input_ids"].shape[1]) == export.greedy
    assert len({answer[:4] for answer in export.greedy}) == len(QUESTIONS)


def test_beams_are_neither_changed_by_the_cache_nor_by_padding(
    export: Export, pictures: list[bytes]
) -> None:
    """Each step has other beams go on, whose keys and values must come along."""
    together = inputs(export, pictures)
    how = dict(max_new_tokens=NUM_TOKENS, num_beams=3)
    length = together["input_ids"].shape[1]
    expected = answers(export, export.model.generate(**together, use_cache=False, **how), length)
    assert answers(export, export.model.generate(**together, **how), length) == expected
    for chat, answer in zip(chats(pictures), expected, strict=True):
        alone = export.processor.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = export.model.generate(**alone, **how)
        assert answers(export, ids, alone["input_ids"].shape[1]) == [answer]
    assert expected == export.beams != export.greedy


def test_drawn_tokens_are_text_and_follow_from_the_seed(
    export: Export, pictures: list[bytes]
) -> None:
    given = inputs(export, pictures)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        how = dict(do_sample=True, temperature=1.3, top_p=0.9, num_return_sequences=2)
        ids = export.model.generate(**given, max_new_tokens=NUM_TOKENS, **how)
        assert ids.shape[0] == 2 * len(QUESTIONS)
        assert ids[:, given["input_ids"].shape[1] :].max() < export.model.config.image_token_id
        drawn.append(ids.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_answers_to_a_row_all_see_its_images(export: Export, pictures: list[bytes]) -> None:
    given = inputs(export, pictures)
    how = dict(do_sample=True, top_k=1, num_return_sequences=2)
    ids = export.model.generate(**given, max_new_tokens=NUM_TOKENS, **how)
    expected = [answer for answer in export.greedy for _ in range(2)]
    assert answers(export, ids, given["input_ids"].shape[1]) == expected


def test_placeholders_and_images_must_agree_with_beams_too(
    export: Export, pictures: list[bytes]
) -> None:
    given = inputs(export, pictures)
    given["pixel_values"] = given["pixel_values"][1:]
    with pytest.raises(ValueError, match="Build both with this model's processor"):
        export.model.generate(**given, max_new_tokens=1, num_beams=2)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_answers_conversations_as_we_do(
    batch_size: int, export: Export, pictures: list[bytes]
) -> None:
    """Its batches take either conversations with images or without."""
    which = range(4) if batch_size == 1 else (0, 1, 3)
    records = export.pipeline(
        text=[chats(pictures)[at] for at in which],
        return_full_text=False,
        max_new_tokens=NUM_TOKENS,
        batch_size=batch_size,
    )
    said = [record[0]["generated_text"].strip() for record in records]
    expected = decoded(export, [export.greedy[at] for at in which])
    assert said == [words.strip() for words in expected]


def decoded(export: Export, answers: Sequence[Sequence[int]]) -> list[str]:
    return [export.processor.decode(answer, skip_special_tokens=True) for answer in answers]


def test_the_pipeline_takes_pictures_and_text_apart(export: Export, pictures: list[bytes]) -> None:
    asked = [
        export.processor.apply_chat_template(chats(pictures)[at], add_generation_prompt=True)
        for at in (0, 2)
    ]
    opened = [[Image.open(io.BytesIO(pictures[0]))], []]
    how = dict(return_full_text=False, max_new_tokens=NUM_TOKENS)
    records = export.pipeline(images=opened, text=asked, **how)
    expected = decoded(export, [export.greedy[0], export.greedy[2]])
    assert [record["generated_text"].strip() for record in records] == [
        words.strip() for words in expected
    ]


def test_the_pipeline_goes_on_from_the_beginning_of_an_answer(
    export: Export, pictures: list[bytes]
) -> None:
    """Where the answer is given whole, nothing but its end is left out of the prompt."""
    chat = [*chats(pictures)[0], {"role": "assistant", "content": "Two dogs"}]
    how = dict(tokenize=True, return_dict=True)
    whole = export.processor.apply_chat_template(chat, **how)["input_ids"][0]
    begun = export.processor.apply_chat_template(chat, continue_final_message=True, **how)
    assert begun["input_ids"][0] == whole[:-1]
    assert whole[-1] == export.processor.tokenizer.eos_token_id
    (record,) = export.pipeline(text=chat, max_new_tokens=3)
    assert record["generated_text"][-1]["content"].startswith("Two dogs")


@pytest.mark.parametrize(
    "name", ["AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"]
)
def test_every_auto_class_is_the_whole_model(name: str, export: Export) -> None:
    import transformers

    loaded = getattr(transformers, name).from_pretrained(export.path, trust_remote_code=True)
    assert type(loaded) is type(export.model)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[key], one) for key, one in export.model.state_dict().items())


@pytest.mark.parametrize("nothing", [None, [], [[]], [None]])
def test_no_video_and_no_audio_may_be_said_in_any_way(nothing: Any, export: Export) -> None:
    """As lmms-eval and lm-eval call a processor."""
    from transformers import BatchFeature

    given = export.processor(
        text=["Who?", "What is this?"],
        images=[],
        videos=nothing,
        audio=nothing,
        audios=nothing,
        padding="longest",
        truncation=False,
        return_tensors="pt",
    )
    assert type(given) is BatchFeature
    assert sorted(given) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("what", ["videos", "audio", "audios"])
def test_video_and_audio_are_refused(what: str, export: Export) -> None:
    with pytest.raises(ValueError, match="reads text and images; leave out video and audio"):
        export.processor(text="Who?", **{what: [[0.5]]})


def test_a_prompt_is_not_cut(export: Export) -> None:
    with pytest.raises(ValueError, match="a prompt is not cut"):
        export.processor(text="Who?", truncation=True)

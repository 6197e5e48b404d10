"""Items of tasks are put to a model: as a user's turn, or as a text to go on with."""

from dataclasses import replace

import torch

from tests.unit.evaluation.conftest import Subject
from vila_mc.data.chat_templates import BUILT_IN, prompt
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.decoder import Decoder, encode_prompt
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.tasks.asking import ask_items, continuation
from vila_mc.evaluation.tasks.registry import find_task
from vila_mc.evaluation.tasks.task import Item
from vila_mc.flow import RawImage, RawText


def asked(subject: Subject) -> AskedModel:
    return AskedModel(subject.model, subject.tokenizer, BUILT_IN["vicuna_v1"])


def test_images_are_asked_about_in_the_template(subject: Subject) -> None:
    shown = RawImage(subject.images / "red.png", "red.png")
    item = Item("1", "what colour is this?", (shown,))
    (found,) = ask_items(asked(subject), find_task("gqa"), [item], batch=2, max_new_tokens=5)
    pieces = prompt("vicuna_v1", item.question, [shown])
    (ids,) = generate(subject.model, subject.tokenizer, [pieces], 5)
    assert found.answer == subject.tokenizer.decode([*ids]).strip()
    assert found.is_cut


def test_texts_go_on_without_a_template_and_end_at_stops(subject: Subject) -> None:
    item = Item("1", "one two")
    task = find_task("drop")
    (found,) = ask_items(asked(subject), task, [item], batch=1, max_new_tokens=9)
    (ids,) = generate(subject.model, subject.tokenizer, [[RawText("one two", False)]], 9)
    said = subject.tokenizer.decode([*ids]).strip()
    assert found.answer == said.partition(".")[0].strip()
    stop = said[len(said) // 2 :][:2]
    stopping = replace(task, stops=(stop,))
    (cut,) = ask_items(asked(subject), stopping, [item], batch=1, max_new_tokens=9)
    assert cut.answer == said[: said.index(stop)].strip()
    assert not cut.is_cut


def test_the_likeliest_letter_is_taken(subject: Subject) -> None:
    choices = {"A": " red", "B": " blue", "C": " one two three", "D": " two"}
    item = Item("1", "what colour is", choices=choices)
    (found,) = ask_items(asked(subject), find_task("mmlu"), [item], batch=1, max_new_tokens=1)
    scores = {}
    encoded = encode_prompt([RawText(item.question, is_trained=False)], subject.tokenizer)
    for letter, text in choices.items():
        decoder, total = Decoder(subject.model, [encoded], 60), 0.0
        for token in continuation(subject.tokenizer, item.question, text):
            total += float(torch.log_softmax(decoder.logits_bv[0].double(), -1)[token])
            decoder.read([token])
        scores[letter] = total
    assert found.answer == max(scores, key=lambda letter: scores[letter])
    assert len({round(score, 3) for score in scores.values()}) == 4

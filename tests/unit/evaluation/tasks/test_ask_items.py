"""Items of tasks are put to a model: as a user's turn, or as a text to go on with."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.evaluation.conftest import Subject
from vila_mc.data.chat_templates import BUILT_IN, conversation_pieces, prompt
from vila_mc.data.turns import Turn
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.decoder import Decoder, encode_prompt
from vila_mc.evaluation.generate import generate
from vila_mc.evaluation.likelihood import Likelihood
from vila_mc.evaluation.tasks import asking
from vila_mc.evaluation.tasks.asking import ask_items, continuation
from vila_mc.evaluation.tasks.demonstrations import Demonstrations, Shots
from vila_mc.evaluation.tasks.registry import find_task
from vila_mc.evaluation.tasks.task import Item
from vila_mc.flow import RawImage, RawText, TextPiece


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


def test_a_letter_in_the_template_has_the_tokens_of_training(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[list[list[int]]] = []

    def likelihoods(*given: Any) -> list[Likelihood]:
        weighed.append(given[3])
        return [Likelihood(-4.0, 1, False), Likelihood(-5.0, 1, False)]

    monkeypatch.setattr(asking, "likelihoods", likelihoods)
    item = Item("1", "what colour is this?", choices={"A": "red", "B": "blue and red"})
    task = replace(find_task("mmlu"), is_text=False)
    (found,) = ask_items(asked(subject), task, [item], batch=1, max_new_tokens=1)
    assert found.answer == "A"
    for ids, text in zip(weighed[0], item.choices.values(), strict=True):
        turns = [Turn("user", item.question), Turn("assistant", text)]
        trained = encode_prompt(conversation_pieces("vicuna_v1", turns, []), subject.tokenizer)[-1]
        assert isinstance(trained, TextPiece)
        assert ids == [int(token) for token in trained.ids][:-1]  # without EOS
    # -4 of 3 characters is less likely than -5 of 12.
    (other,) = ask_items(
        asked(subject), replace(task, per_character=True), [item], batch=1, max_new_tokens=1
    )
    assert other.answer == "B"


def test_what_was_read_is_told(subject: Subject) -> None:
    shown = [RawImage(subject.images / f"{name}.png", f"{name}.png") for name in ("red", "blue")]
    pool = [Item("p", "what is it?", (shown[1],), ("blue",), words="what is it?")]
    item = Item("1", "and this?", (shown[0],), words="and this?")
    demonstrations = Demonstrations(pool, Shots(1, form="flamingo"))
    (found,) = ask_items(
        asked(subject),
        find_task("gqa"),
        [item],
        batch=1,
        max_new_tokens=2,
        demonstrations=demonstrations,
    )
    assert found.prompt == (
        "<image>Question:what is it? Short answer:blue{eos}\n"
        "<image>Question:and this? Short answer:"
    )
    assert found.shown == tuple(pool)

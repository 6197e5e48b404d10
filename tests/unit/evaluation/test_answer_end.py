"""An answer ends where the template ended those of training: at a token, or at a text."""

from pathlib import Path

import pytest

from tests.support.tiny_data import VOCABULARY, random_sentences
from tests.unit.evaluation.conftest import Subject
from vila_mc.convert.tokenizer_files import added_token, load_convertible, write_tokenizer
from vila_mc.data.chat_templates import BUILT_IN, Template, prompt
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.generate import generate
from vila_mc.flow import RawImage

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def own(end: str) -> Template:
    return Template(first="", next="", close="", end=end, special=SPECIAL)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(random_sentences(200), folder / "t.model", VOCABULARY)
    more = [added_token(VOCABULARY + number, text) for number, text in enumerate(SPECIAL)]
    write_tokenizer(load_convertible(folder / "t.model", VOCABULARY), folder, 256, more=more)
    return Tokenizer(folder)


EOS = "</s>"


@pytest.mark.parametrize(
    ("template", "said", "tokens", "words"),
    [
        ("vicuna_v1", "red", [EOS], "red"),
        ("llama_2", "red ", [EOS], "red"),
        ("llama_3", "red", ["<|eot_id|>"], "red"),
        ("chatml", "red", ["<|im_end|>"], "red"),
        ("plain", "a red dog\n", [], "a red dog"),
        ("plain", "a red dog\nand more", [], "a red dog"),
        ("plain", "a red dog", [EOS], "a red dog"),
        ("plain", "\n", [], ""),
        (own("###"), "red ###", [], "red"),
        (own(".<|eot_id|>"), "red.", ["<|eot_id|>"], "red"),
        (own("!{eos}"), "red!", [EOS], "red"),
        (TokenizerTemplate(JINJA, (), SPECIAL), "red", ["<|im_end|>"], "red"),
    ],
)
def test_an_answer_ends_where_training_ended_it(
    template: str | Template | TokenizerTemplate,
    said: str,
    tokens: list[str],
    words: str,
    tokenizer: Tokenizer,
) -> None:
    end = AnswerEnd.of(template, tokenizer)
    ends = [tokenizer.eos_id if text == EOS else tokenizer.special_id(text) for text in tokens]
    answer = [*tokenizer.encode(said), *ends]
    assert end.is_reached(answer)
    assert end.words(answer) == words


@pytest.mark.parametrize(
    ("template", "said"),
    [("vicuna_v1", "red\n"), ("plain", "a red dog."), (own("###"), "red ##"), (own(""), "red\n")],
)
def test_another_text_ends_none(template: str | Template, said: str, tokenizer: Tokenizer) -> None:
    end, answer = AnswerEnd.of(template, tokenizer), tokenizer.encode(said)
    assert not end.is_reached(answer)
    assert end.words(answer) == said.strip()


def test_a_cut_answer_keeps_what_looks_like_an_end(tokenizer: Tokenizer) -> None:
    assert AnswerEnd.of(own("!{eos}"), tokenizer).words(tokenizer.encode("red!")) == "red!"


def test_an_id_without_a_token_is_seen_and_ends_nothing(tokenizer: Tokenizer) -> None:
    end = AnswerEnd.of("vicuna_v1", tokenizer)
    said = [*tokenizer.encode("the"), tokenizer.vocab_size, tokenizer.vocab_size + 7]
    assert not end.is_reached(said)
    assert end.words([*said, tokenizer.eos_id]) == "the\ufffd\ufffd"


def test_generation_stops_at_the_text_that_ends_an_answer(subject: Subject) -> None:
    image = RawImage(Path(subject.images) / "red.png", "red.png")
    asked = [prompt(BUILT_IN["plain"], "", [image])]
    model, tokenizer = subject.model, subject.tokenizer
    (whole,) = generate(model, tokenizer, asked, 8)
    text = tokenizer.decode(whole[3:4]).strip()
    first = next(n for n in range(1, 9) if text in tokenizer.decode(whole[:n]))
    assert first < 8  # or it would prove nothing
    end = AnswerEnd.of(Template(first="", next="", close="", end=text, is_plain=True), tokenizer)
    assert generate(model, tokenizer, asked, 8, end) == [whole[:first]]

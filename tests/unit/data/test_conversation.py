"""Templates: what the model reads, what it learns, and that prompts equal training prefixes."""

from pathlib import Path

import pytest

from vila_mc.data.chat_templates import (
    BUILT_IN,
    TemplateName,
    conversation_pieces,
    find_template,
    prompt,
)
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import RawImage, RawPiece, RawText, RawToken

A = RawImage(Path("a.jpg"), "a.jpg")
B = RawImage(Path("b.jpg"), "b.jpg")

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


def turns(*texts: str) -> list[Turn]:
    return [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def shown(pieces: tuple[RawPiece, ...]) -> str:
    """Parts on one line: images as <name>, trained text in braces, EOS as $."""
    out = ""
    for piece in pieces:
        if isinstance(piece, RawImage):
            out += f"<{piece.name}>"
        else:
            text = "$BOS" if isinstance(piece, RawToken) else piece.text
            text += "$" if isinstance(piece, RawText) and piece.ends_turn else ""
            out += f"{{{text}}}" if piece.is_trained else text
    return out


def test_vicuna_v1() -> None:
    pieces = conversation_pieces(
        "vicuna_v1", turns("<image>\nWhat? ", " A fox.", "Why?", "So."), [A]
    )
    assert shown(pieces) == (
        f"{SYSTEM} USER: <a.jpg>\nWhat? ASSISTANT:{{ A fox.$}}USER: Why? ASSISTANT:{{ So.$}}"
    )


def test_llama_2() -> None:
    pieces = conversation_pieces("llama_2", turns("Look: <image>", "Yes", "More", "No"), [A])
    assert shown(pieces).startswith("[INST] <<SYS>>\nYou are a helpful language and vision")
    assert shown(pieces).endswith(
        "language.\n<</SYS>>\n\nLook: <a.jpg> [/INST]{ Yes $}$BOS[INST] More [/INST]{ No $}"
    )


def test_plain_is_the_image_and_a_trained_caption_with_newline() -> None:
    pieces = conversation_pieces("plain", turns("<image>\nDescribe it.", "A fox. "), [A])
    assert pieces == (A, RawText("A fox.\n", is_trained=True, ends_turn=False))


def test_several_images_in_several_turns() -> None:
    said = turns("<image><image> differ?", "Yes", "Now <image>\nthis", "No")
    pieces = conversation_pieces("vicuna_v1", said, [A, B, A])
    assert shown(pieces) == (
        f"{SYSTEM} USER: <a.jpg>\n <b.jpg>\ndiffer? ASSISTANT:{{ Yes$}}"
        "USER: Now <a.jpg>\nthis ASSISTANT:{ No$}"
    )


@pytest.mark.parametrize("template", BUILT_IN)
@pytest.mark.parametrize("question", ["What is it?", "<image>\nWhat is it?", "See <image>, what?"])
def test_prompt_is_the_prefix_in_training(template: TemplateName, question: str) -> None:
    marked = question if "<image>" in question else f"<image>\n{question}"
    whole = conversation_pieces(template, turns(marked, "A fox."), [A])
    front = prompt(template, question, [A])
    assert front == whole[: len(front)]
    assert not any(p.is_trained for p in front if not isinstance(p, RawImage))
    assert whole[len(front)].is_trained


@pytest.mark.parametrize("template", sorted({*BUILT_IN} - {"plain"}))
def test_text_only_prompt_is_the_prefix_in_training(template: TemplateName) -> None:
    whole = conversation_pieces(template, turns("Why?", "So."), [])
    front = prompt(template, "Why?")
    assert front == whole[: len(front)]


@pytest.mark.parametrize("template", sorted({*BUILT_IN} - {"plain"}))
def test_a_prompt_after_others_is_the_prefix_in_training(template: TemplateName) -> None:
    said = turns("See <image>, what?", "A fox.", "Why?", "So.", "<image>\nAnd it?", "A dog.")
    whole = conversation_pieces(template, said, [A, B])
    front = prompt(template, "And it?", [B], said[:4], [A])
    assert front == whole[: len(front)]
    assert front[-1] == RawText(shown(front[-1:]), is_trained=False)
    assert whole[len(front)].is_trained


@pytest.mark.parametrize("template", sorted({*BUILT_IN} - {"plain"}))
def test_a_prompt_with_a_system_text_is_the_prefix_in_training(template: TemplateName) -> None:
    whole = conversation_pieces(template, turns("Why?", "So."), [], system=" Be brief.")
    front = prompt(template, "Why?", system=" Be brief.")
    assert front == whole[: len(front)]
    assert "Be brief." in shown(front)


def test_a_system_text_without_a_place_is_refused() -> None:
    with pytest.raises(DataError, match="has no place for a system text"):
        prompt("plain", "", [A], system="Be brief.")


def test_only_answers_are_trained() -> None:
    for template in BUILT_IN:
        pieces = conversation_pieces(template, turns("<image>\nQ", "answer"), [A])
        trained = [piece for piece in pieces if isinstance(piece, RawText) and piece.is_trained]
        assert [piece.text.strip() for piece in trained] == ["answer"]


def test_answer_tokens_follow_the_prompt_as_in_one_text(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("USER: why? ASSISTANT: so what")
    pieces = tokenizer.encode("USER: why? ASSISTANT:") + tokenizer.encode("so what")
    assert pieces == whole


@pytest.mark.parametrize(
    ("said", "images", "message"),
    [
        (turns("<image> Q", "A"), [], "1 <image> markers but 0 images"),
        (turns("Q", "A"), [A], "0 <image> markers but 1 images"),
        (turns("Q"), [], "the turns are user. A conversation"),
        ([], [], "the turns are none"),
        ([Turn("assistant", "A"), Turn("user", "Q")], [], "the turns are assistant, user"),
        (turns("Q", " "), [], r"turn 2 \(assistant\) is empty"),
    ],
)
def test_bad_conversations(said: list[Turn], images: list[RawImage], message: str) -> None:
    with pytest.raises(DataError, match=message):
        conversation_pieces("vicuna_v1", said, images)


def test_plain_needs_an_image() -> None:
    with pytest.raises(DataError, match="the plain template"):
        conversation_pieces("plain", turns("Q", "A"), [])


def test_prompt_with_too_few_markers() -> None:
    with pytest.raises(DataError, match="1 <image> markers but 2 images"):
        prompt("vicuna_v1", "<image> Q", [A, B])


def test_template_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(
        'system: Be kind.\nfirst: "{system}|U: "\nnext: "|U: "\nclose: "|A:"\n', encoding="utf-8"
    )
    template = find_template(file)
    said = turns("<image> What?", "A fox.", "Why?", "So.")
    assert shown(conversation_pieces(template, said, [A])) == (
        "Be kind.|U: <a.jpg>\nWhat?|A:{A fox.$}|U: Why?|A:{So.$}"
    )
    assert shown(conversation_pieces(template, said, [A], system="Own {system}.")).startswith(
        "Own {system}.|U: "
    )
    assert shown(prompt(template, "What?", [A])) == "Be kind.|U: <a.jpg>\nWhat?|A:"
    assert find_template("llama_2") == find_template("llama_2")


@pytest.mark.parametrize(
    "content", ["a: [", "[]", "first: x", "first: x\nnext: x\nclose: 1", b"\xff", "{x: y}"]
)
def test_files_that_are_no_templates(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "chat.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=r"chat\.yaml is not (YAML|a template)") as caught:
        find_template(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no template vicuna\. Give plain, vicuna_v1, llama_2"):
        find_template("vicuna")

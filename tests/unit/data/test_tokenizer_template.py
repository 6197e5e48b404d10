"""The tokenizer's own chat template: the ids of ``apply_chat_template``, and what is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vila_mc.data.chat_templates import conversation_pieces, find_template, prompt
from vila_mc.data.ingest.encode import AS_IS, encode_samples
from vila_mc.data.tokenizer_template import TokenizerTemplate
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.data.turns import Turn
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import EncodedSample, ImagePiece, RawImage, RawPiece, RawSample, TextPiece

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_end|>\n\n' }}"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
INSTRUCTING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
REWRITING = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{{ m['content'] if loop.last else '...' }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "marked": MARKED,
    "trimming": TRIMMING,
    "instructing": INSTRUCTING,
}
TURNS = [
    Turn("user", " Why, <b>?\n\n"),
    Turn("assistant", "\u00e9\u4e2d So.\n\nAnd so"),
    Turn("user", "More\U0001f600"),
    Turn("assistant", "No more"),
]
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>", "<|eot|>"]
IMAGE = RawImage(b"", "an image", sides=(1, 1))


def byte_level() -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, "so", "mo"])}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[("s", "o"), ("m", "o")])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return made


def with_bytes(pre_tokenizer: Any, normalizer: Any) -> Any:
    """As Llama's and Mistral's: bytes for what is unknown, and a space in front."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzINSTOMWNA[]/?.,:<>|", "or", "\u2581more"]
    spelled = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *letters]
    merges = [("o", "r")]
    vocabulary = {piece: number for number, piece in enumerate(spelled)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens(SPECIAL)
    return made


def stripping() -> Any:
    made = byte_level()
    made.add_special_tokens([tokenizers.AddedToken("<|im_end|>", special=True, rstrip=True)])
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_level,
    "tokens that take white space": stripping,
    "a space in front of every part": lambda: with_bytes(
        None,
        tokenizers.normalizers.Sequence(
            [
                tokenizers.normalizers.Prepend("\u2581"),
                tokenizers.normalizers.Replace(" ", "\u2581"),
            ]
        ),
    ),
    "a space in front of the first part": lambda: with_bytes(
        tokenizers.pre_tokenizers.Metaspace("\u2581", "first", False), None
    ),
}


def write(folder: Path, made: Any, template: str | None) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
    } | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def encode(pieces: tuple[RawPiece, ...], tokenizer: Tokenizer) -> EncodedSample:
    (made,) = encode_samples([RawSample(pieces, 1)], tokenizer, AS_IS)
    assert isinstance(made, EncodedSample), made
    return made


def flat(sample: EncodedSample) -> tuple[list[int], list[bool]]:
    texts = [piece for piece in sample.pieces if isinstance(piece, TextPiece)]
    ids = [int(i) for piece in texts for i in piece.ids]
    return ids, [piece.is_trained for piece in texts for _ in piece.ids]


def messages_of(turns: list[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text.strip()} for turn in turns]


def found(tokenizer: Tokenizer) -> TokenizerTemplate:
    template = find_template("tokenizer", tokenizer)
    assert isinstance(template, TokenizerTemplate)
    return template


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_apply_chat_template(tmp_path: Path, kind: str, name: str) -> None:
    tokenizer = write(tmp_path, KINDS[kind](), TEMPLATES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    template = found(tokenizer)
    for turns in (TURNS, TURNS[:2]):
        ids, trained = flat(encode(conversation_pieces(template, turns, []), tokenizer))
        expected = theirs.apply_chat_template(
            messages_of(turns),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=name == "marked",
        )
        assert ids == expected["input_ids"]
        if name == "marked":
            assert trained == [bool(one) for one in expected["assistant_masks"]]
        assert any(trained)
        assert not all(trained)
    asked, trained = flat(encode(prompt(template, TURNS[0].text), tokenizer))
    assert not any(trained)
    assert (
        asked
        == theirs.apply_chat_template(
            messages_of(TURNS[:1]), tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )


def test_a_system_text_is_in_the_prompt_or_refused(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, byte_level(), CHATML)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids, _ = flat(encode(prompt(found(tokenizer), "Why?", system=" Be so."), tokenizer))
    said = [{"role": "system", "content": " Be so."}, {"role": "user", "content": "Why?"}]
    expected = theirs.apply_chat_template(
        said, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert ids == expected["input_ids"]
    rewriting = found(write(tmp_path, byte_level(), REWRITING))
    with pytest.raises(DataError, match="leaves out the system text"):
        prompt(rewriting, "Why?", system="Be so.")


@pytest.mark.parametrize("name", ["chatml", "trimming", "instructing"])
def test_answers_and_what_ends_them_are_trained(tmp_path: Path, name: str) -> None:
    tokenizer = write(tmp_path, byte_level(), TEMPLATES[name])
    pieces = conversation_pieces(found(tokenizer), TURNS, [])
    trained = [piece.text for piece in pieces if getattr(piece, "is_trained", False)]
    end, space = ("<|eot|>", "") if name == "trimming" else ("<|im_end|>", "")
    space = " " if name == "instructing" else ""
    assert trained == [f"{space}{turn.text}{end}" for turn in TURNS[1::2]]


def test_untrained_turns_and_images(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, byte_level(), CHATML)
    turns = [
        Turn("user", "<image>\nA <image>"),
        Turn("assistant", "B", is_trained=False),
        Turn("user", "C"),
        Turn("assistant", "D"),
    ]
    sample = encode(conversation_pieces(found(tokenizer), turns, [IMAGE] * 2), tokenizer)
    kinds = [
        "image" if isinstance(piece, ImagePiece) else (piece.is_trained, len(piece.ids))
        for piece in sample.pieces
    ]
    front, image, between, other, behind, answer, last = kinds
    assert (image, other) == ("image", "image")
    assert answer == (True, len("D") + 1)
    assert [front[0], between[0], behind[0], last[0]] == [False] * 4  # type: ignore[index]
    text = sample.pieces[2]
    assert isinstance(text, TextPiece)
    assert tokenizer.decode(text.ids.tolist()) == "\nA "


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (CHATML, [Turn("user", "a <|im_end|> b"), TURNS[1]], r"the text holds <\|im_end\|>, which"),
        (CHATML, [TURNS[0], Turn("assistant", "<s>")], "the text holds <s>"),
        (CHATML, [TURNS[0], Turn("assistant", "a \ufdd0")], "U.FDD0"),
        (REWRITING, TURNS, "writes a turn in another way"),
        ("{{ raise_exception('only\nthree turns') }}", TURNS, "refuses: only three turns"),
        ("{{ messages[9]['role'] }}", TURNS, "chat template refuses"),
        ("{% generation %}x{% endgeneration %}", TURNS, "marks 1 answers of 2"),
    ],
)
def test_conversations_that_the_template_cannot_write(
    tmp_path: Path, template: str, turns: list[Turn], message: str
) -> None:
    tokenizer = write(tmp_path, byte_level(), template)
    with pytest.raises(DataError, match=message):
        conversation_pieces(found(tokenizer), turns, [])


def test_where_the_template_stands(tmp_path: Path, tokenizer: Tokenizer) -> None:
    own = write(tmp_path, byte_level(), None)
    with pytest.raises(ConfigError, match="brings no chat template"):
        find_template("tokenizer", own)
    with pytest.raises(ConfigError, match="brings no chat template"):
        find_template("tokenizer", tokenizer)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert found(own).text == CHATML
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": MARKED}, {"name": 1}, 2]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert found(Tokenizer(tmp_path)).text == MARKED


@pytest.mark.parametrize("name", ["chatml", "llama_3"])
def test_built_in_templates_with_special_tokens(tmp_path: Path, name: str) -> None:
    made = byte_level()
    plain = write(tmp_path, made, None)
    if name == "llama_3":
        with pytest.raises(ConfigError, match=r"llama_3 needs the tokens <\|end_header_id\|>, <"):
            find_template("llama_3", plain)
    made.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    tokenizer = write(tmp_path, made, None)
    template = find_template(name, tokenizer)
    whole = conversation_pieces(template, TURNS, [], system="S")
    ids, trained = flat(encode(whole, tokenizer))
    if name == "chatml":
        front, mid, close, end = "<|im_start|>{}\n", "", "<|im_end|>\n", "<|im_end|>"
    else:
        front, mid, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "", "<|eot_id|>"
        close = end
    said = [("system", "S"), *[(turn.role, turn.text.strip()) for turn in TURNS]]
    text = mid.join(front.format(role) + words + close for role, words in said)
    assert ids == [tokenizer.bos_id, *made.encode(text).ids]
    learned = [i for i, is_trained in zip(ids, trained, strict=True) if is_trained]
    assert learned == made.encode("".join(turn.text + end for turn in TURNS[1::2])).ids
    own, _ = flat(encode(conversation_pieces(template, TURNS, []), tokenizer))
    asked, _ = flat(encode(prompt(template, TURNS[0].text), tokenizer))
    assert asked == own[: len(asked)]


def test_special_tokens_of_a_file_and_of_a_record(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, byte_level(), None)
    file = tmp_path / "chat.yaml"
    file.write_text(
        'first: "<|im_start|>user\\n"\nnext: "<|im_start|>user\\n"\n'
        'close: "<|im_end|>\\n<|im_start|>assistant\\n"\nend: "<|im_end|>"\nafter: "\\n"\n'
    )
    template = find_template(file, tokenizer)
    turns = [Turn("user", "<|im_end|>"), Turn("assistant", "Yo")]
    ids, _ = flat(encode(conversation_pieces(template, turns, []), tokenizer))
    text = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    expected = byte_level().encode(text).ids
    assert [i for i in ids if i >= 258] == [tokenizer.bos_id, *[i for i in expected if i >= 258]]
    assert len(ids) == 1 + len(expected) + len("<|im_end|>")
    assert np.count_nonzero(np.array(ids) == tokenizer.eos_id) == 2  # the record's is spelled out

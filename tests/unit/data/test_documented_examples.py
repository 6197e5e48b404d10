"""Every example of docs/your_own_data.md is what our readers take."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.chat_templates import find_template
from vila_mc.data.ingest.corpus_text import read_sentences, with_template
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Source, read
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.evaluation.questions import read_questions
from vila_mc.flow import RawImage, RawSample

PAGE = (Path(__file__).parents[3] / "docs" / "your_own_data.md").read_text()
EXAMPLES = re.findall(r"^```json (\w+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
IMAGES = sorted({name for _, lines in EXAMPLES for name in re.findall(r'"([\w-]+\.jpg)"', lines)})


@pytest.fixture
def images(tmp_path: Path, make_image: Callable[..., bytes]) -> ImageFolder:
    for name in IMAGES:
        (tmp_path / name).write_bytes(make_image())
    return ImageFolder(tmp_path)


def test_every_kind_has_an_example() -> None:
    assert [kind for kind, _ in EXAMPLES] == [
        *("pairs", "conversations", "interleaved", "text", "questions")
    ]


@pytest.mark.parametrize(("kind", "lines"), EXAMPLES, ids=[kind for kind, _ in EXAMPLES])
def test_an_example_is_read_whole(
    kind: str, lines: str, images: ImageFolder, tmp_path: Path
) -> None:
    file = tmp_path / f"{kind}.jsonl"
    file.write_text(lines)
    records = [json.loads(line) for line in lines.splitlines()]
    if kind == "questions":
        assert len(read_questions(file, tmp_path)) == len(records)
        return
    sources: dict[str, Callable[[], Source]] = {
        "pairs": lambda: PairSource([file], images),
        "conversations": lambda: ConversationSource([file], images),
        "interleaved": lambda: InterleavedSource([file], images),
        "text": lambda: TextSource([file]),
    }
    samples = list(read(sources[kind]()))
    assert [type(sample) for sample in samples] == [RawSample] * len(records)
    for record, sample in zip(records, samples, strict=True):
        shown = [piece for piece in sample.pieces if isinstance(piece, RawImage)]  # type: ignore[union-attr]
        assert len(shown) == json.dumps(record).count(".jpg")


def test_the_template_is_one(tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(_template())
    template = find_template(tmp_path / "chat.yaml")
    assert "USER" in template.first  # type: ignore[union-attr]


def test_the_examples_alone_yield_the_tokens_that_the_page_asks_for(tmp_path: Path) -> None:
    (asked,) = re.findall(r"--vocab-size (\d+) --output", PAGE)
    files = []
    for kind, lines in EXAMPLES:
        if kind in ("pairs", "conversations"):
            files.append(tmp_path / f"{kind}.jsonl")
            files[-1].write_text(lines)
    (tmp_path / "chat.yaml").write_text(_template())
    sentences = with_template(read_sentences(files), find_template(tmp_path / "chat.yaml"))
    train_tokenizer(sentences, tmp_path / "tokenizer.model", int(asked))


def _template() -> str:
    (text,) = re.findall(r"cat > chat\.yaml <<'END'\n(.*?)^END", PAGE, re.DOTALL | re.MULTILINE)
    return text

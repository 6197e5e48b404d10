"""What docs/asking.md says of loading an export works, word by word, and warns of nothing."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.unit.convert.independent_vila import VOCABULARY, build, tiny_model
from vila_mc.checkpoint.lazy import lazily
from vila_mc.convert.formats.registry import FORMATS, FormatName
from vila_mc.convert.formats.write_export import write_export

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "asking.md"
SNIPPET = re.compile(r"^### ([\w-]+)\n.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_QUIET = re.compile(r"warn|deprecat|error|mismatch|newly initialized", re.IGNORECASE)


def snippets() -> dict[str, str]:
    _, _, section = DOCUMENT.read_text().partition("## Loading an export")
    return dict(SNIPPET.findall(section.partition("\n## ")[0]))


def test_every_format_has_a_snippet() -> None:
    assert sorted(snippets()) == sorted(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_snippet_loads_its_format(
    format: FormatName,
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model("linear")
    state = lazily(build(model).canonical())
    write_export(state, model, tokenizer_path, tmp_path / "hf", torch.float32, format=format)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    values: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exec(compile(snippets()[format], DOCUMENT.name, "exec"), values)
    said = capfd.readouterr()
    assert [str(one.message) for one in warned] == []
    assert not NOT_QUIET.search(said.err), said.err
    if format == "vila":
        return  # loaded in parts
    assert said.out.endswith("\n")
    output, inputs = values["output"], values["inputs"]
    assert isinstance(output, torch.Tensor)
    assert output.shape[1] > inputs["input_ids"].shape[1]  # type: ignore[index]
    assert output.max() <= VOCABULARY

"""Looking into datasets: pages escape everything, damage is named, export is the way back."""

import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.old_sets import make_old
from tests.support.pieces import text_piece
from vila_mc.commands import inspect_data
from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.indexed.writer import IndexedWriter
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.provenance import in_short
from vila_mc.data.inspection.page import sample_page
from vila_mc.data.inspection.summary import _bins, draw_summary
from vila_mc.data.inspection.verify_dataset import verify
from vila_mc.data.inspection.write_records import export
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Source
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import EncodedSample, ImagePiece

ROOT = Path(__file__).parents[3]
ATTACK = "<script>alert('x')</script> & \"quoted\" <image>"

Write = Callable[..., Path]


def tool(*arguments: object) -> int:
    code: int = runpy.run_path(str(ROOT / "tools" / "inspect_data.py"))["main"](
        [str(argument) for argument in arguments]
    )
    return code


@pytest.fixture
def conversations(tmp_path: Path, write_lines: Write, make_image: Callable[..., bytes]) -> Source:
    for name, format in (("a.png", "PNG"), ("b.jpeg", "JPEG"), ("c.tiff", "TIFF")):
        (tmp_path / name).write_bytes(make_image(format=format))
    said = [{"from": "human", "value": f"{ATTACK}\nwhy?"}, {"from": "gpt", "value": "So <b>."}]
    records = [{"image": name, "conversations": said} for name in ("a.png", "b.jpeg", "c.tiff")]
    return ConversationSource([write_lines("a.jsonl", records)], ImageFolder(tmp_path))


def test_page_is_self_contained_and_escapes_everything(
    tmp_path: Path, conversations: Source, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    preprocess(
        conversations, tmp_path / "set", "multimodal", tokenizer_path, facts={"kind": ATTACK}
    )
    reader = IndexedReader(tmp_path / "set")
    for index, kind in enumerate(("png", "jpeg", "png")):  # browsers do not show TIFF
        page = sample_page(reader, index, tokenizer, tile_positions=4, model=ATTACK)
        assert "<script" not in page
        assert "http" not in page.replace("http-equiv", "")
        assert page.count(f'src="data:image/{kind};base64,') == page.count("<img") == 1
    assert "&lt;" in page
    trained = page[page.index('<span class="trained">', page.index("<main>")) :]
    assert trained.count('class="token"') == len(tokenizer.encode("So <b>.")) + 1
    assert "<b>" not in trained
    assert f'title="{tokenizer.eos_id}">&lt;/s&gt;' in trained
    page = sample_page(reader, 0, None, tile_positions=4)
    assert f'<span class="token" title="{tokenizer.bos_id}">1</span>' in page


def test_page_of_nothing_and_of_another_tokenizer(
    tmp_path: Path, make_set: Callable[..., Path], write_lines: Write
) -> None:
    from vila_mc.data.tokenizers.tokenizer import train_tokenizer

    reader = IndexedReader(make_set(tmp_path / "set", 2))
    for index in (-1, 2):
        with pytest.raises(DataError, match=f"there is no sample {index}"):
            sample_page(reader, index, None, tile_positions=4)
    train_tokenizer(["some other text"] * 9, tmp_path / "other.model", 275)
    other = Tokenizer(tmp_path / "other.model")
    with pytest.raises(DataError, match="made with another tokenizer"):
        sample_page(reader, 0, other, tile_positions=4)
    with pytest.raises(DataError, match="made with another tokenizer"):
        export(reader, other, tmp_path / "out")


def test_page_shows_damaged_images_as_such(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(EncodedSample((text_piece((1,), False), ImagePiece(b"junk", "an image"))))
        writer.finish({})
    page = sample_page(IndexedReader(tmp_path / "set"), 0, tokenizer, tile_positions=4)
    assert "4 bytes that are no image" in page


def test_whole_set_is_verified(
    tmp_path: Path, make_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = make_set(tmp_path / "set", 70)
    assert tool("verify", prefix) == 0
    assert "is whole: checksums agree, 70 images decode" in capsys.readouterr().out
    assert tool("verify", make_old(prefix, 1)) == 0
    assert "version 1 has no checksum" in capsys.readouterr().out


def test_damage_is_named(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "set"
    with IndexedWriter(prefix, "multimodal", tokenizer) as writer:
        writer.add(EncodedSample((text_piece((1, 399), False),)))
        writer.add(EncodedSample((text_piece((1, 400), False),)))
        writer.add(EncodedSample((text_piece((1, 5), False), ImagePiece(b"junk", "an image"))))
        writer.finish({})
    found = verify(prefix)
    assert [fault.partition(":")[0] for fault in found.faults] == ["sample 1", "sample 2"]
    assert "sample 1 holds the token id 400, outside its vocabulary" in found.faults[0]
    assert "sample 2 is not an image" in found.faults[1]
    data = bytearray(Path(f"{prefix}.bin").read_bytes())
    data[0] ^= 2
    Path(f"{prefix}.bin").write_bytes(data)
    with pytest.raises(DataError, match="set has 3 faults"):
        tool("verify", prefix)
    assert "set.bin is damaged: its checksum differs" in capsys.readouterr().out


def test_one_fault_and_no_workers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "set", "multimodal", tokenizer) as writer:
        writer.add(EncodedSample((text_piece((1, 400), False),)))
        writer.finish({})
    with pytest.raises(DataError, match=r"set has 1 fault\. Copy"):
        tool("verify", tmp_path / "set")
    with pytest.raises(ConfigError, match="--workers is 0; it must be at least 1"):
        tool("verify", tmp_path / "set", "--workers", "0")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".manifest.json"])
def test_a_file_in_place_of_the_prefix(
    tmp_path: Path, make_set: Callable[..., Path], suffix: str
) -> None:
    prefix = make_set(tmp_path / "set", 1)
    with pytest.raises(DataError, match=rf"one file of a dataset\. Give .*: {prefix}\."):
        tool("summary", f"{prefix}{suffix}")


def test_files_of_a_source_in_short() -> None:
    files = [{"name": f"{n}.tar", "bytes": 1000} for n in range(2000)]
    assert in_short(files).startswith("2,000, 2,000,000 bytes: 0.tar, 1.tar")
    assert len(in_short(files)) < 80
    assert in_short({"a": [1]}) == "{'a': [1]}"


def test_summary_counts_and_draws(
    tmp_path: Path, make_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = make_set(tmp_path / "set", 5)
    assert tool("summary", prefix, "--png", tmp_path / "a.png") == 0
    printed = capsys.readouterr().out
    assert "samples    5\n" in printed
    assert "tokens     25; a sample: 5.0 on average, 5 to 5, median 5" in printed
    assert "positions  of a row, 144 for an image (the default model; --config" in printed
    assert "149.0 on average, 149 to 149, median 149" in printed
    assert "in set.bin: token ids, and image files as they were\n" in printed
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_a_page_shows_the_sample_first_and_says_what_is_next(
    tmp_path: Path,
    make_set: Callable[..., Path],
    tokenizer_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefix, html, recipe = make_set(tmp_path / "a set", 3), tmp_path / "a.html", tmp_path / "r.yaml"
    recipe.write_text("model: {vision: {image_size: 56}, connector: {kind: linear}}")
    given = ("--output", html, "--tokenizer", tokenizer_path, "--config", recipe)
    assert inspect_data.main(["show", str(prefix), "1", *map(str, given)], "vila-mc inspect") == 0
    page, said = html.read_text(), capsys.readouterr().out.splitlines()
    facts = "1 image of 16 visual tokens each"
    assert "5 tokens, of which" in page
    assert page.index(facts) < page.index("<figure>") < page.index("What the set was made from")
    assert ": 21 positions of a row" in page
    size = len(IndexedReader(prefix).sample(1)[1].data)  # type: ignore[union-attr]
    assert f"{20 + size:,} in a set.bin: 4 for each token, and {size:,} for the file of the" in page
    for what, number in (("previous", 0), ("next", 2)):
        shown = f"vila-mc inspect show '{prefix}' {number} --output {html}"
        assert [line for line in said if line.startswith(f"{what:9} {shown} --tokenizer ")]
        assert f"show &#39;{prefix}&#39; {number} --output" in page
    again = shlex.split(said[-1])[3:]
    assert again[0] == "show"
    assert inspect_data.main(again, "vila-mc inspect") == 0
    assert "sample 2 of 3" in html.read_text()
    assert "next" not in capsys.readouterr().out


def test_the_default_model_is_named_as_such(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    html = tmp_path / "a.html"
    assert tool("show", make_set(tmp_path / "set", 1), 0, "--output", html) == 0
    assert "144 visual tokens each" in html.read_text()
    assert "(the default model; --config counts those of yours)" in html.read_text()


@pytest.mark.parametrize(
    ("counts", "edges", "scale"),
    [
        ([40, 41, 60], (39.5, 60.5), "linear"),
        ([7], (6.5, 7.5), "linear"),
        ([0, 3], (-0.5, 3.5), "linear"),
        ([100, 900], (99.5, 900 + 16.5), "linear"),
        ([3, 4000], (2.5, 4000.5), "log"),
    ],
)
def test_axes_begin_where_the_data_do(
    counts: list[int], edges: tuple[float, float], scale: str
) -> None:
    bins, found = _bins(np.array(counts))
    assert (bins[0], found) == (pytest.approx(edges[0]), scale)
    assert max(counts) < bins[-1] <= edges[1] + 1e-9
    assert len(bins) <= 52


def test_every_histogram_spans_its_data(tmp_path: Path, make_set: Callable[..., Path]) -> None:
    figure = draw_summary(IndexedReader(make_set(tmp_path / "set", 5)))
    limits = [axis.get_xlim() for axis in figure.axes]
    assert limits == [(4.5, 5.5), (0.5, 1.5), (29.5, 40.5)]


def test_text_sets_are_summed_up_too(
    tmp_path: Path, tokenizer_path: Path, write_lines: Write
) -> None:
    source = TextSource([write_lines("a.jsonl", [{"text": "x"}])])
    preprocess(source, tmp_path / "set", "text", tokenizer_path, facts={})
    assert tool("summary", tmp_path / "set", "--png", tmp_path / "a.png") == 0
    before = (tmp_path / "set.bin").read_bytes()
    with pytest.raises(DataError, match=r"--output is .*set.bin, which is there and is no .html"):
        tool("show", tmp_path / "set", "0", "--output", tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == before
    assert tool("show", tmp_path / "set", "0", "--output", tmp_path / "a.html") == 0
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!doctype html>")
    # BOS is in a trained piece, but nothing could predict it.
    ids = [int(i) for i in re.findall(r'title="(\d+)"', page)]
    assert f'<span class="read"><span class="token" title="{ids[0]}">' in page
    assert f"{len(ids) - 1} are trained on" in page


def again(kind: str, folder: Path) -> Source:
    files = [folder / "samples.jsonl"]
    if kind == "text":
        return TextSource(files)
    return (PairSource if kind == "pairs" else InterleavedSource)(files, ImageFolder(folder))


def test_exported_sets_can_be_preprocessed_again(
    tmp_path: Path, tokenizer_path: Path, write_lines: Write, make_image: Callable[..., bytes]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(make_image(seed=number))

    def document(sentences: list[str], *places: int) -> dict[str, object]:
        infos = [
            {"image_name": f"{n}.png", "matched_text_index": at} for n, at in enumerate(places)
        ]
        return {"text_list": sentences, "image_info": infos}

    images = ImageFolder(tmp_path)
    sources: dict[str, Source] = {
        "text": TextSource([write_lines("t.jsonl", [{"text": ATTACK}, {"text": " two\n lines "}])]),
        "pairs": PairSource(
            [write_lines("p.jsonl", [{"image": f"{n}.png", "caption": ATTACK} for n in (0, 1)])],
            images,
        ),
        "interleaved": InterleavedSource(
            [
                write_lines(
                    "i.jsonl",
                    [
                        document(["One.", "Two.", "Three."], 1, 1, 2),
                        document(["One.", "", "Two.", ""], 0, 1, 3),
                        document(["Like a pair."], 0),
                    ],
                )
            ],
            images,
        ),
    }
    for kind, source in sources.items():
        set_kind = "text" if kind == "text" else "multimodal"
        first, second = tmp_path / f"{kind}1", tmp_path / f"{kind}2"
        preprocess(source, first, set_kind, tokenizer_path, facts={})
        folder = tmp_path / f"{kind}-out"
        options = ("--output", folder, "--tokenizer", tokenizer_path)
        assert tool("export", first, *options) == 0
        preprocess(again(kind, folder), second, set_kind, tokenizer_path, facts={})
        for suffix in (".bin", ".idx"):
            assert Path(f"{first}{suffix}").read_bytes() == Path(f"{second}{suffix}").read_bytes()
        with pytest.raises(DataError, match="exists already"):
            tool("export", first, *options)


def test_conversations_are_exported_as_parts(
    tmp_path: Path, conversations: Source, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    preprocess(conversations, tmp_path / "set", "multimodal", tokenizer_path, facts={})
    assert export(IndexedReader(tmp_path / "set"), tokenizer, tmp_path / "out") == 3
    line = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert [sorted(part) for part in line["parts"]] == [
        ["is_trained", "text"],
        ["image"],
        ["is_trained", "text"],
        ["is_trained", "text"],
    ]
    assert line["parts"][-1] == {"text": "So <b>.", "is_trained": True}
    name = line["parts"][1]["image"]
    assert (tmp_path / "out" / name).read_bytes().startswith((tmp_path / "a.png").read_bytes())

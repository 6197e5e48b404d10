"""Raw files to datasets: the same bytes for any number of workers, and no bad record vanishes."""

import errno
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest import preprocess as module
from vila_mc.data.ingest.encode import ImagePolicy
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError, SetupError, run_cli

ROOT = Path(__file__).parents[3]
Write = Callable[..., Path]
NEVER = TextSource([Path("never-read.jsonl")])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A tool of the project in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def pairs(tmp_path: Path, write_lines: Write, make_image: Callable[..., bytes]) -> Path:
    """40 pairs, of which 3 are bad: no caption, no image, a damaged image."""
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(40):
        (tmp_path / "images" / f"{number}.png").write_bytes(make_image(seed=number))
        lines.append({"image": f"{number}.png", "caption": f"picture number {number}"})
    del lines[11]["caption"]
    lines[17]["image"] = "none.png"
    (tmp_path / "images" / "30.png").write_bytes(b"junk")
    return write_lines("pairs.jsonl", lines)


def make_pairs(
    pairs: Path, output: Path, tokenizer: Path, limit: str = "3", workers: int = 1
) -> module.Preprocessed:
    return preprocess(
        PairSource([pairs], ImageFolder(pairs.parent / "images")),
        output,
        "multimodal",
        tokenizer,
        facts={},
        workers=workers,
        limit=RejectionLimit.parse(limit),
    )


def test_bytes_do_not_depend_on_workers(tmp_path: Path, pairs: Path, tokenizer_path: Path) -> None:
    for workers in (1, 2):
        make_pairs(pairs, tmp_path / f"w{workers}" / "set", tokenizer_path, workers=workers)
    names = sorted(os.listdir(tmp_path / "w1"))
    assert names == ["set.bin", "set.idx", "set.manifest.json", "set.rejected.jsonl"]
    for name in names:
        assert (tmp_path / "w1" / name).read_bytes() == (tmp_path / "w2" / name).read_bytes()


def test_pairs_are_stored_as_bos_image_caption_eos(
    tmp_path: Path, pairs: Path, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    made = make_pairs(pairs, tmp_path / "set", tokenizer_path)
    assert (made.manifest.samples, made.manifest.images) == (37, 37)
    bos, image, caption = IndexedReader(tmp_path / "set").sample(1)
    assert (bos.ids.tolist(), bos.is_trained) == ([tokenizer.bos_id], False)
    assert image.data.tobytes().startswith((tmp_path / "images" / "1.png").read_bytes())
    assert caption.ids.tolist() == [*tokenizer.encode("picture number 1"), tokenizer.eos_id]
    assert caption.is_trained


def test_rejected_records_are_listed(tmp_path: Path, pairs: Path, tokenizer_path: Path) -> None:
    made = make_pairs(pairs, tmp_path / "set", tokenizer_path)
    assert made.rejected == {"missing key": 1, "missing image": 1, "unusable image": 1}
    lines = (tmp_path / "set.rejected.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(record["line"], record["reason"]) for record in found] == [
        (12, "missing key"),
        (18, "missing image"),
        (31, "unusable image"),
    ]
    assert {record["file"] for record in found} == {str(pairs)}
    assert all(record["detail"] for record in found)


@pytest.mark.parametrize("limit", ["2", "7%", "0", "0%"])
def test_too_many_rejected(tmp_path: Path, pairs: Path, tokenizer_path: Path, limit: str) -> None:
    message = (
        rf"of \d+ records are rejected.*The first: {pairs}:12: missing key: there is no 'caption' "
        "or 'text'; the record has image; the option caption_key says where to look"
    )
    with pytest.raises(DataError, match=message) as caught:
        make_pairs(pairs, tmp_path / "out" / "set", tokenizer_path, limit)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "out") == ["set.rejected.jsonl"]


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        (
            {"image": "none.png", "caption": "c"},
            r"no file .*none\.png\. The option images says",
        ),
        ("image,caption", r"not JSON: .*\. Records are JSON objects, one a line"),
    ],
)
def test_most_records_have_a_fault_with_a_hint(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path, record: object, hint: str
) -> None:
    with pytest.raises(DataError, match=hint):
        make_pairs(write_lines("a.jsonl", [record] * 9), tmp_path / "set", tokenizer_path)


def test_most_records_lack_a_key(tmp_path: Path, write_lines: Write, tokenizer_path: Path) -> None:
    file = write_lines("a.jsonl", ["{", *[{"url": "u", "caption": f"c {n}"} for n in range(9)]])
    message = (
        r"10 of 10 records are rejected.* Most are 'missing key'\. The first of these: .*a\.jsonl:2"
        r": missing key: there is no 'text'; the record has url, caption; the option text_key"
    )
    with pytest.raises(DataError, match=message):
        preprocess(TextSource([file]), tmp_path / "set", "text", tokenizer_path, facts={})


def test_what_an_option_leaves_out_is_no_fault(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path, make_image: Callable[..., bytes]
) -> None:
    (tmp_path / "a.png").write_bytes(make_image())

    def make(*similarities: float) -> module.Preprocessed:
        infos = [
            {"image_name": "a.png", "matched_text_index": 0, "matched_sim": x} for x in similarities
        ]
        file = write_lines("a.jsonl", [{"text_list": ["T."], "image_info": [i]} for i in infos])
        source = InterleavedSource([file], ImageFolder(tmp_path), least_similarity=0.2)
        limit = RejectionLimit.parse("0")
        output = tmp_path / f"set{len(infos)}"
        return preprocess(source, output, "multimodal", tokenizer_path, facts={}, limit=limit)

    made = make(0.1, 0.3, 0.1)
    assert (made.manifest.samples, made.rejected) == (1, {"no similar image": 2})
    assert len((tmp_path / "set3.rejected.jsonl").read_text().splitlines()) == 2
    with pytest.raises(DataError, match=r"no sample is left .*The first: .*no similar image"):
        make(0.1)


def test_share_that_is_just_kept(tmp_path: Path, pairs: Path, tokenizer_path: Path) -> None:
    assert make_pairs(pairs, tmp_path / "set", tokenizer_path, "7.5%").manifest.samples == 37


def test_no_record_at_all(tmp_path: Path, write_lines: Write, tokenizer_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sample is left .*holds no record"):
        make_pairs(write_lines("a.jsonl", []), tmp_path / "set", tokenizer_path)


def test_nothing_but_allowed_rejections(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no sample is left .*not JSON"):
        make_pairs(write_lines("a.jsonl", ["{"]), tmp_path / "set", tokenizer_path)


def test_settings_out_of_range(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers is 0"):
        preprocess(NEVER, tmp_path / "set", "text", tokenizer_path, facts={}, workers=0)
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        ImagePolicy(max_pixels=0)
    with pytest.raises(ConfigError, match="resize is 0"):
        ImagePolicy(resize=0)


def test_existing_set_is_refused_before_any_work(
    tmp_path: Path, tokenizer_path: Path, make_set: Callable[..., Path]
) -> None:
    prefix = make_set(tmp_path / "set", 1)
    with pytest.raises(DataError, match="exists already"):
        preprocess(NEVER, prefix, "multimodal", tokenizer_path, facts={})
    with pytest.raises(DataError, match=r"/ is no prefix of a dataset\. Add a name"):
        preprocess(NEVER, Path("/"), "multimodal", tokenizer_path, facts={})


def test_full_disk_leaves_no_set(
    tmp_path: Path, pairs: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="no space left for"):
        make_pairs(pairs, tmp_path / "out" / "set", tokenizer_path)
    assert os.listdir(tmp_path / "out") == []


def test_failed_run_without_rejections_leaves_nothing(
    tmp_path: Path, write_lines: Write, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DataError("no space left")

    monkeypatch.setattr(module.IndexedWriter, "append", full)  # type: ignore[attr-defined]
    file = write_lines("a.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="no space left"):
        preprocess(TextSource([file]), tmp_path / "out" / "set", "text", tokenizer_path, facts={})
    assert os.listdir(tmp_path / "out") == []


def test_tools_from_raw_files_to_sets(
    tmp_path: Path, pairs: Path, write_lines: Write, make_image: Callable[..., bytes]
) -> None:
    corpus = write_lines(
        "text.jsonl", [{"text": f"line {n} of text about foxes"} for n in range(90)]
    )
    model = tmp_path / "t.model"
    trained = run(
        "tools/train_tokenizer.py", "--input", corpus, "--output", model, "--vocab-size", 400
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith(
        f"{model}: 400 tokens from 90 texts; the words of the template"
    )

    mmc4 = write_lines(
        "mmc4.jsonl",
        [
            {
                "text_list": ["One.", "Two."],
                "image_info": [{"image_name": "1.png", "matched_text_index": 1}],
            }
        ],
    )
    said = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    llava = tmp_path / "llava.json"
    llava.write_text(json.dumps([{"image": "2.png", "conversations": said}]))
    folder = ("--images", tmp_path / "images")
    for kind, file, options, samples in [
        ("text", corpus, (), 90),
        ("pairs", pairs, (*folder, "--max-rejected", "3"), 37),
        ("interleaved", mmc4, folder, 1),
        ("conversations", llava, (*folder, "--template", "plain"), 1),
    ]:
        output = tmp_path / "sets" / kind
        common = ("--input", file, "--output", output, "--tokenizer", model)
        made = run("tools/preprocess_data.py", kind, *common, *options)
        assert made.returncode == 0, made.stderr
        assert made.stdout.startswith(f"kept      {samples} samples\n")
        assert len(IndexedReader(output)) == samples
    assert IndexedReader(output).manifest.source == {
        "kind": "conversations",
        "template": "plain",
        "max_frames": 8,
        "skip_leading_answers": False,
        "place_images_first": False,
        "images": "images",
        "files": [{"name": "llava.json", "bytes": llava.stat().st_size}],
        "max_pixels": 64_000_000,
        "resize": None,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", "--input", "none", "--output", "x", "--tokenizer", "x"), "no file matches"),
        (("texts",), "invalid choice: 'texts'"),
        (("text", "--inptu", "x"), "error: "),
        (("pairs",), "required: --input, --output, --tokenizer"),
        ((), "required: kind"),
    ],
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "preprocess_data.py"))
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: tool["main"](arguments))
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_preprocessing_starts_without_torch() -> None:
    code = "import sys, vila_mc.data.ingest.preprocess; print('torch' in sys.modules)"
    assert run("-c", code).stdout == "False\n"

"""Runs that are stopped: what is left, and that going on gives the bytes of one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vila_mc.data.indexed.reader import IndexedReader
from vila_mc.data.ingest import preprocess as module
from vila_mc.data.ingest.encode import ImagePolicy
from vila_mc.data.ingest.preprocess import Preprocessed, preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Source
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
SUFFIXES = (".bin", ".idx", ".manifest.json", ".rejected.jsonl")


@pytest.fixture
def source(tmp_path: Path, make_image: Callable[..., bytes]) -> Source:
    """Three files of 70 pairs, blocks of 32; every ninth record is bad."""
    (tmp_path / "a.png").write_bytes(make_image())
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.jsonl")
        records = [
            {"image": "a.png" if n % 9 else "none.png", "caption": f"file {number}, picture {n}"}
            for n in range(70)
        ]
        files[-1].write_text("".join(json.dumps(record) + "\n" for record in records))
    return PairSource(files, ImageFolder(tmp_path))


def make(
    source: Source,
    output: Path,
    tokenizer: Path,
    limit: str = "100%",
    resume: bool = True,
    images: ImagePolicy = module.AS_IS,  # type: ignore[attr-defined]
) -> Preprocessed:
    return preprocess(
        source,
        output,
        "multimodal",
        tokenizer,
        facts={"kind": "pairs"},
        limit=RejectionLimit.parse(limit),
        images=images,
        resume=resume,
    )


def contents(prefix: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES}


class StopError(BaseException):
    """A kill that the test can catch."""


def stop_after(monkeypatch: pytest.MonkeyPatch, results: int) -> None:
    """Every result is committed, and the run is stopped after so many of them."""
    write = module._Run.write

    def stopping(self: module._Run, items: Iterable[object]) -> None:
        def some() -> Iterator[object]:
            for number, item in enumerate(items):
                if number == results:
                    raise StopError
                yield item

        write(self, some())

    monkeypatch.setattr(module._Run, "write", stopping)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_any_number_of_stops_gives_the_same_bytes(
    tmp_path: Path,
    source: Source,
    tokenizer_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
) -> None:
    whole = make(source, tmp_path / "whole", tokenizer_path)
    assert whole.rejected == {"missing image": 24}
    with monkeypatch.context() as patched:
        patched.setattr(module, "_COMMIT_BYTES", -1)
        stop_after(patched, every)
        for _ in range(8 // every):
            with suppress(StopError):
                make(source, tmp_path / "set", tokenizer_path)
            assert sorted(path.name for path in tmp_path.glob("set*")) == ["set.partial"]
    made = make(source, tmp_path / "set", tokenizer_path)
    assert made.rejected == whole.rejected
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert not (tmp_path / "set.partial").exists()


def test_stop_before_the_first_commit_leaves_nothing(
    tmp_path: Path, source: Source, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 2)
    with pytest.raises(StopError):
        make(source, tmp_path / "set", tokenizer_path)
    assert not list(tmp_path.glob("set*"))


@pytest.fixture
def stopped(
    tmp_path: Path, source: Source, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that was stopped half way."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "_COMMIT_BYTES", -1)
        stop_after(patched, 4)
        with suppress(StopError):
            make(source, tmp_path / "set", tokenizer_path)
    return tmp_path / "set"


def test_unfinished_run_is_not_lost_by_forgetting_resume(
    stopped: Path, source: Source, tokenizer_path: Path
) -> None:
    with pytest.raises(DataError, match=r"unfinished run in .*set\.partial\. Resume it"):
        make(source, stopped, tokenizer_path, resume=False)
    make(source, stopped, tokenizer_path)
    assert len(IndexedReader(stopped)) == 186


def test_other_settings_do_not_go_on(stopped: Path, source: Source, tokenizer_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot go on with these: resize: null -> 9\. Use"):
        make(source, stopped, tokenizer_path, images=ImagePolicy(resize=9))
    before = source.files[1].stat().st_size
    source.files[1].write_text("shorter\n")
    changed = rf"1\.jsonl of {before:,} bytes -> 1\.jsonl of 8 bytes\. .*delete .*set\.partial"
    with pytest.raises(ConfigError, match=changed):
        make(source, stopped, tokenizer_path)


def test_complete_set_is_said_and_left_alone(
    tmp_path: Path, source: Source, tokenizer_path: Path
) -> None:
    made = make(source, tmp_path / "set", tokenizer_path)
    before = contents(tmp_path / "set")
    again = make(source, tmp_path / "set", tokenizer_path)
    assert again.was_complete
    assert again.lines()[:3] == [
        "complete already: nothing was left to do",
        "kept      186 samples",
        "rejected  24 records",
    ]
    assert (again.manifest, again.rejected) == (made.manifest, made.rejected)
    assert contents(tmp_path / "set") == before


def test_complete_set_of_other_settings_is_refused(
    tmp_path: Path, source: Source, tokenizer_path: Path
) -> None:
    make(source, tmp_path / "set", tokenizer_path)
    with pytest.raises(ConfigError, match=r"set is complete, but .*: max_pixels: 64000000 -> 5000"):
        make(source, tmp_path / "set", tokenizer_path, images=ImagePolicy(max_pixels=5000))
    other = tmp_path / "other.model"
    train_tokenizer(["another text"] * 9, other, 270)
    with pytest.raises(ConfigError, match=r"options: tokenizer: .* -> "):
        make(source, tmp_path / "set", other)
    fewer = PairSource(source.files[:2], ImageFolder(tmp_path))
    with pytest.raises(ConfigError, match="options: files: 3 -> 2 of them"):
        make(fewer, tmp_path / "set", tokenizer_path)
    with (tmp_path / "set.bin").open("ab") as data:
        data.truncate(100)
    with pytest.raises(DataError, match=r"set\.bin holds 100 bytes"):
        make(source, tmp_path / "set", tokenizer_path)


def test_higher_limit_goes_on_where_the_lower_one_stopped(
    tmp_path: Path, source: Source, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(source, tmp_path / "whole", tokenizer_path).manifest
    monkeypatch.setattr(module, "_COMMIT_BYTES", -1)
    with pytest.raises(DataError, match="24 of 210 records are rejected"):
        make(source, tmp_path / "set", tokenizer_path, limit="5%")
    listed = (tmp_path / "set.rejected.jsonl").read_text().splitlines()
    assert len(listed) == 24
    monkeypatch.setattr(module, "_Encoder", None)  # nothing is left to encode
    assert make(source, tmp_path / "set", tokenizer_path, limit="12%").manifest == whole
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_finished_run_that_was_killed_while_moving(
    tmp_path: Path, source: Source, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(source, tmp_path / "whole", tokenizer_path)
    replace = Path.replace

    def dying(self: Path, target: Path) -> None:
        if target == tmp_path / "set.idx":
            os._exit(9)
        replace(self, target)

    monkeypatch.setattr(module, "_COMMIT_BYTES", -1)
    if (child := os.fork()) == 0:
        monkeypatch.setattr(Path, "replace", dying)
        make(source, tmp_path / "set", tokenizer_path)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    made = make(source, tmp_path / "set", tokenizer_path)
    assert (made.manifest, made.rejected) == (whole.manifest, whole.rejected)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


COMMIT_ALWAYS = """
import runpy, signal, sys, time
import vila_mc.data.ingest.preprocess as p

def commit(self, do=p._Run._commit):
    do(self)
    if self._file == {hold_in_file}:
        time.sleep(600)

p._COMMIT_BYTES, p._Run._commit = -1, commit
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under a shell's background job
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(source: Source, output: Path, tokenizer: Path, hold_in_file: int) -> list[str]:
    """The tool on two processes, committing as often as it can.

    Args:
        hold_in_file: number of the file in which it stops and waits, so that on a busy machine it
            has not ended before it is killed; one that does not exist for a run to its end.
    """
    code = COMMIT_ALWAYS.format(hold_in_file=hold_in_file)
    files = [str(file) for file in source.files]
    tool = ["tools/preprocess_data.py", "pairs", "--input", *files, "--output", str(output)]
    options = ["--tokenizer", str(tokenizer), "--max-rejected", "100%", "--workers", "2"]
    return [sys.executable, "-c", code, *tool, *options, "--resume"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_real_kills(tmp_path: Path, source: Source, tokenizer_path: Path, how: int) -> None:
    for file in source.files:  # long enough to be caught on the way
        file.write_text(file.read_text() * 8)
    progress = tmp_path / "set.partial" / "progress.json"
    process = subprocess.Popen(
        command(source, tmp_path / "set", tokenizer_path, hold_in_file=2),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(progress.exists, process)
    time.sleep(random.Random(how).random() / 10)
    process.send_signal(how)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), printed
    if how == signal.SIGINT:
        assert printed.strip() == "interrupted"
    assert not list(tmp_path.glob("set.[bim]*"))
    assert progress.exists()
    made = make(source, tmp_path / "whole", tokenizer_path)
    finished = subprocess.run(
        command(source, tmp_path / "set", tokenizer_path, hold_in_file=-1),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"kept      {made.manifest.samples:,} samples" in finished.stdout
    for suffix in (".bin", ".idx", ".rejected.jsonl"):
        whole, again = (Path(f"{tmp_path}/{name}{suffix}") for name in ("whole", "set"))
        assert whole.read_bytes() == again.read_bytes()

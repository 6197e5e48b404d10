"""Makes the world: pictures, texts, a tokenizer, data sets and questions.

bash examples/atlas/build.sh OUT [--small] [--packages DIR] [--seed N]
"""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from atlas import corpora
from atlas.drawing import Rasterize
from atlas.packages import COUNTRIES, RENDERER, fetch, sources_page
from atlas.pictures import Draw, Picture, by_country, write_cards, write_pictures
from atlas.questions import Task, tasks
from atlas.report import CARDS, report_page
from atlas.world import SMALL, Size, World, read_world
from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, SetupError, run_cli
from vila_mc.files import write_json, write_whole

CHECKOUT = Path(__file__).resolve().parents[2]
DONE = "atlas.json"
"""Written last: what the world was made with."""
TEMPLATE = "chat.yaml"
CHAT = 'first: "Q: "\nnext: " Q: "\nclose: " A: "\n'
"""Short: the words of a usual template would be most of every sample."""
PARTS = ("raw", "data", "questions", "pictures")
DATA_SETS = {
    "text": ("text", "text.jsonl"),
    "letters": ("conversations", CARDS),
    "sight": ("conversations", "sight.json"),
    "pairs": ("pairs", "pairs.jsonl"),
    "interleaved": ("interleaved", "interleaved.jsonl"),
    "interleaved_as_pairs": ("interleaved", "interleaved.jsonl"),
    "sft": ("conversations", "sft.json"),
    "sft_text": ("conversations", "sft_text.json"),
}
"""Name, kind and raw file of each data set."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Make a small world of flags, outlines, maps and facts to train and question a VILA on."""

    output: Annotated[Path, Argument("OUT", is_positional=True)]
    """Folder to write to: new, empty, or of a build that was stopped."""
    small: bool = False
    """For two CPU cores: smaller pictures, fewer of each, and 1,500 definitions."""
    packages: Path | None = None
    """Folder of the packages (default: OUT/packages); what lies there is not fetched."""
    seed: int = 1
    """Of every choice: who is held out, which words are used."""


def main() -> int:
    """Parse and build. Raises VilaError."""
    return run_job(Job(BuildOptions, build), None, None)


def build(options: BuildOptions) -> int:
    """Fetch the packages and make everything that is not there yet; returns the exit code."""
    output, size = options.output, SMALL if options.small else Size()
    made_with = {"seed": options.seed, "size": asdict(size)}
    if (output / DONE).is_file():
        _require_same(output, made_with)
        print(f"{output} is complete")
        return 0
    _start(output)
    fetched = fetch(options.packages or output / "packages")
    write_whole(output / "SOURCES.md", sources_page(list(fetched.values())))
    folders = {name: one.folder for name, one in fetched.items()}
    world = read_world(folders, size, options.seed)
    pictures = write_world(world, size, output, folders, _renderer(folders[RENDERER.name]))
    index(output, size.vocabulary)
    found = list(tasks(world, pictures))
    write_questions(found, output / "questions")
    page = report_page(world, pictures, found, raw_counts(output / "raw"), options.seed)
    write_whole(output / "report.md", page)
    write_json(output / DONE, made_with)
    print(page)
    return 0


def write_world(
    world: World, size: Size, output: Path, packages: Mapping[str, Path], rasterize: Rasterize
) -> list[Picture]:
    """Write the pictures and every raw file; returns all pictures but those of
    letters alone, those of questions among them.

    Raises:
        DataError: a package is not what it should be.
        OSError: something cannot be written.
    """
    draw = Draw(world, size, packages[COUNTRIES.name], rasterize)
    pictures = write_pictures(draw, output / "pictures")
    cards = write_cards(draw, output / "pictures")
    shown = [picture for picture in pictures if not picture.is_test]
    raw = output / "raw"
    raw.mkdir()
    write_lines(raw / "text.jsonl", corpora.texts(world, size))
    _write_list(raw / CARDS, corpora.letters(cards))
    _write_list(raw / "sight.json", corpora.sight(world, shown))
    write_lines(raw / "pairs.jsonl", corpora.pairs(world, shown))
    documents = corpora.interleaved(world, by_country(shown), size)
    write_lines(raw / "interleaved.jsonl", documents)
    _write_list(raw / "sft.json", corpora.conversations(world, shown))
    _write_list(raw / "sft_text.json", corpora.text_conversations(world))
    return pictures


def index(output: Path, vocabulary: int) -> None:
    """A tokenizer trained on all that is written, and the indexed data sets. Raises SetupError."""
    template, tokenizer = output / TEMPLATE, output / "tokenizer.model"
    write_whole(template, CHAT)
    raw = output / "raw"
    files = sorted({raw / file for _, file in DATA_SETS.values()})
    _tool(
        "train_tokenizer.py",
        *("--input", *files, "--output", tokenizer, "--template", template, "--overwrite"),
        *("--vocab-size", vocabulary),
    )
    for name, (kind, file) in DATA_SETS.items():
        _tool(
            "preprocess_data.py",
            *(kind, "--input", raw / file, "--output", output / "data" / name),
            *("--tokenizer", tokenizer, "--workers", 2),
            *(() if kind == "text" else ("--images", output / "pictures")),
            *(("--template", template) if kind == "conversations" else ()),
            *(("--as-pairs",) if name == "interleaved_as_pairs" else ()),
        )


def write_questions(found: Sequence[Task], folder: Path) -> None:
    """A file for each task, and ``index.json``."""
    folder.mkdir()
    for task in found:
        write_lines(folder / f"{task.name}.jsonl", task.lines)
    write_whole(folder / "index.json", _as_list(task.record for task in found))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """A JSON Lines file. Raises OSError."""
    write_whole(path, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in records))


def raw_counts(raw: Path) -> dict[str, tuple[int, int]]:
    """Records and words of every raw file."""
    counts = {}
    for path in sorted(raw.iterdir()):
        content = path.read_text(encoding="utf-8")
        records = (
            json.loads(content)
            if path.suffix == ".json"
            else [json.loads(line) for line in content.splitlines()]
        )
        counts[path.name] = (len(records), sum(_num_words(record) for record in records))
    return counts


def _num_words(record: Record) -> int:
    texts = [record.get("text", ""), record.get("caption", ""), *record.get("text_list", [])]
    texts += [turn["value"].replace("<image>", "") for turn in record.get("conversations", [])]
    return sum(len(text.split()) for text in texts)


def _start(output: Path) -> None:
    """An output folder without what an earlier build left. Raises ConfigError."""
    ours = {*PARTS, "packages", "SOURCES.md", "report.md", TEMPLATE, "tokenizer.model"}
    strange = {one.name for one in output.iterdir()} - ours if output.is_dir() else set()
    if strange or (output.exists() and not output.is_dir()):
        raise ConfigError(
            f"{output} holds {min(strange, default='a file')}, which no build of this world wrote. "
            "Name another folder, or an empty one.",
            option="output",
        )
    for part in PARTS:
        shutil.rmtree(output / part, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)


def _require_same(output: Path, made_with: dict[str, Any]) -> None:
    if json.loads((output / DONE).read_text(encoding="utf-8")) != made_with:
        raise ConfigError(
            f"{output} holds a world of another seed or size. Name another folder, or remove it.",
            option="output",
        )


def _renderer(package: Path) -> Rasterize:
    """resvg, from where it was unpacked. Raises SetupError."""
    sys.path.append(str(package.absolute()))
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise SetupError(f"{package} cannot be used: {error}. Remove it and build again.") from None

    def rasterize(svg: str, width: int) -> bytes:
        # Fonts of the machine would make other pictures elsewhere.
        return bytes(resvg.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True))

    return rasterize


def _tool(name: str, *arguments: object) -> None:
    """One of our tools in a process of its own. Raises SetupError."""
    command = [sys.executable, str(CHECKOUT / "tools" / name), *map(str, arguments)]
    if code := subprocess.run(command, check=False).returncode:
        raise SetupError(f"tools/{name} ended with {code}; what it says stands above.")


def _write_list(path: Path, records: Iterable[Record]) -> None:
    write_whole(path, _as_list(records))


def _as_list(records: Iterable[Record]) -> str:
    rows = [json.dumps(record, ensure_ascii=False) for record in records]
    return "[\n" + ",\n".join(rows) + "\n]\n"


if __name__ == "__main__":
    run_cli(main)

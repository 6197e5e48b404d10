"""The small world: what is held out stays held out, the same seed gives the same bytes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ablations"))

from atlas import packages as atlas_packages
from atlas.build import (
    DATA_SETS,
    BuildOptions,
    build,
    raw_counts,
    write_questions,
    write_world,
)
from atlas.drawing import LETTERS, colour_shares
from atlas.nouns import read_nouns
from atlas.packages import COUNTRIES, GLOSSES, MAPS, RENDERER, fetch, sources_page
from atlas.pictures import Picture
from atlas.questions import tasks
from atlas.report import report_page
from atlas.world import SMALL, World, read_world
from declared import read_phases, read_table, table_names
from PIL import Image

from tests.support.atlas_packages import NAMES, TINY, rasterize, write_packages
from vila_mc.config.load import load_run
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import read as read_source
from vila_mc.data.sources.text import TextSource
from vila_mc.errors import ConfigError, DataError, SetupError
from vila_mc.evaluation.tasks.own import OwnTask, own_task
from vila_mc.flow import RawSample

TRAINED = ("sight.json", "pairs.jsonl", "interleaved.jsonl", "sft.json")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def made(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, World, list[Picture]]:
    return make(packages, tmp_path_factory.mktemp("atlas") / "out")


def make(
    packages: dict[str, Path], output: Path, seed: int = 1
) -> tuple[Path, World, list[Picture]]:
    output.mkdir()
    world = read_world(packages, TINY, seed)
    pictures = write_world(world, TINY, output, packages, rasterize)
    write_questions(list(tasks(world, pictures)), output / "questions")
    return output, world, pictures


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        records: list[dict[str, Any]] = json.loads(content)
        return records
    return [json.loads(line) for line in content.splitlines()]


def image_names(record: dict[str, Any]) -> list[str]:
    if "image_info" in record:
        return [info["image_name"] for info in record["image_info"]]
    return record.get("images", [record["image"]] if "image" in record else [])


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_others(
    made: tuple[Path, World, list[Picture]], packages: dict[str, Path], tmp_path: Path
) -> None:
    first = everything(made[0])
    assert everything(make(packages, tmp_path / "again")[0]) == first
    other = everything(make(packages, tmp_path / "other", seed=2)[0])
    assert other["raw/text.jsonl"] != first["raw/text.jsonl"]
    assert other["raw/pairs.jsonl"] != first["raw/pairs.jsonl"]


def test_no_picture_of_a_question_or_of_a_held_out_country_is_trained(
    made: tuple[Path, World, list[Picture]],
) -> None:
    output, world, pictures = made
    country = {picture.name: picture.country for picture in pictures}
    trained = {
        name
        for file in TRAINED
        for record in read(output / "raw" / file)
        for name in image_names(record)
        if not name.startswith("card-")  # which show a letter alone
    }
    assert len(world.held_out) == TINY.held_out
    assert not {country[name] for name in trained} & world.held_out
    assert not trained & {picture.name for picture in pictures if picture.is_test}
    for said in read(output / "questions" / "index.json"):
        lines = read(output / "questions" / said["file"])
        asked = {line["images"][0] for line in lines if "images" in line and _is_test(line)}
        shown = {line["images"][0] for line in lines if not _is_test(line)}
        assert shown <= trained
        held_out = {country[name] in world.held_out for name in asked}
        assert held_out <= {said["held_out"]}, said


def test_what_is_asked_is_not_asked_in_training(made: tuple[Path, World, list[Picture]]) -> None:
    output, _, _ = made
    trained = {
        (record["image"], record["conversations"][0]["value"])
        for record in read(output / "raw" / "sft.json")
    }
    for said in read(output / "questions" / "index.json"):
        if said["kind"] == "vqa":
            lines = read(output / "questions" / said["file"])
            assert not trained & {(line["images"][0], line["question"]) for line in lines}


def test_text_questions_are_in_words_that_no_text_has_and_their_answers_true(
    made: tuple[Path, World, list[Picture]],
) -> None:
    output, world, _ = made
    text = "\n".join(
        (output / "raw" / name).read_text() for name in ("text.jsonl", "interleaved.jsonl")
    )
    capitals = read(output / "questions" / "text_capital.jsonl")
    assert len(capitals) == len(NAMES) // 2
    for file in ("text_capital", "text_currency", "text_border", "text_kind"):
        for line in read(output / "questions" / f"{file}.jsonl"):
            assert f"{line['question']} " not in text
            assert line["answer"] in line["choices"]
            assert len(set(line["choices"])) == 4
    for line in capitals:
        name = line["question"].removeprefix("The capital of ").removesuffix(" is")
        assert line["answer"] == world.countries[name].capital
        assert line["answer"] in text  # the fact is told in other words


def test_every_file_is_read_whole_by_its_kind_of_data(
    made: tuple[Path, World, list[Picture]],
) -> None:
    output, _, pictures = made
    images = ImageFolder(output / "pictures")
    raw = output / "raw"
    sources = {
        "text.jsonl": TextSource([raw / "text.jsonl"]),
        "letters.json": ConversationSource([raw / "letters.json"], images),
        "sight.json": ConversationSource([raw / "sight.json"], images),
        "pairs.jsonl": PairSource([raw / "pairs.jsonl"], images),
        "interleaved.jsonl": InterleavedSource([raw / "interleaved.jsonl"], images),
        "sft.json": ConversationSource([raw / "sft.json"], images),
        "sft_text.json": ConversationSource([raw / "sft_text.json"], images),
    }
    assert {file.name for file in raw.iterdir()} == {*sources}
    for name, source in sources.items():
        results = list(read_source(source))
        assert len(results) == len(read(raw / name)) > 0
        assert all(isinstance(result, RawSample) for result in results), name
    for picture in pictures:
        with Image.open(output / "pictures" / picture.name) as image:
            assert image.size == (TINY.pixels, TINY.pixels)


def test_every_file_of_questions_is_a_task_of_ones_own(
    made: tuple[Path, World, list[Picture]],
) -> None:
    output, _, _ = made
    index = read(output / "questions" / "index.json")
    assert {one["file"] for one in index} == {
        file.name for file in (output / "questions").glob("*.jsonl")
    }
    for one in index:
        task = own_task(
            OwnTask(
                output / "questions" / one["file"],
                output / "pictures",
                form=one["form"],
                weigh=one.get("weighed", "letters"),
            )
        )
        assert len(task.read(output)) == one["questions"]
        assert one["metric"] in task.judges
        assert (task.shown is not None) == (one["kind"] == "shots")
        assert 0 < one["chance"] <= 1


def test_documents_show_four_to_six_pictures_and_lists_say_one_thing(
    made: tuple[Path, World, list[Picture]],
) -> None:
    output, world, pictures = made
    by_name = {picture.name: picture for picture in pictures}
    documents = read(output / "raw" / "interleaved.jsonl")
    assert len(documents) == TINY.lists + TINY.documents * len(world.shown)
    for document in documents:
        infos = document["image_info"]
        shown = [by_name[info["image_name"]] for info in infos]
        assert 4 <= len(shown) <= 6
        assert len({info["matched_text_index"] for info in infos}) == len(infos)
        if len(infos) < len(document["text_list"]):
            assert len({picture.country for picture in shown}) == 1
            assert {picture.kind for picture in shown} >= {"flag", "outline", "locator"}
        else:
            assert len({picture.country for picture in shown}) == len(shown)


def test_pictures_say_what_is_on_them(made: tuple[Path, World, list[Picture]]) -> None:
    output, _, pictures = made
    flags = [picture for picture in pictures if picture.kind == "flag"]
    assert {picture.corner for picture in flags} == {"red", "green", "blue"}
    for picture in flags:
        with Image.open(output / "pictures" / picture.name) as image:
            shares = colour_shares(image)
        assert set(picture.colours) <= set(shares)
        assert not set(picture.colours) & set(picture.absent)
    lettered = [picture for picture in pictures if picture.kind in ("locator", "map")]
    assert lettered
    assert all(picture.letter for picture in lettered)
    told = {one["image"]: one["conversations"] for one in read(output / "raw" / "sight.json")}
    cards = [one["conversations"] for one in read(output / "raw" / "letters.json")]
    assert len(cards) == TINY.cards
    assert len({answer["value"] for _, answer in cards}) > 1
    assert {asked["value"] for asked, _ in cards} == {"<image>\nletter"}
    assert {answer["value"] for _, answer in cards} <= {*LETTERS}
    for picture in lettered:
        if not picture.is_test:
            answers = [turn["value"] for turn in told[picture.name] if turn["from"] == "gpt"]
            assert picture.letter in answers
            assert picture.country in answers


def test_packages_are_read_as_they_are(packages: dict[str, Path]) -> None:
    world = read_world(packages, TINY, 1)
    assert list(world.countries) == list(NAMES)  # sorted, without the territory
    assert world.countries["Belmont"].borders == ("Avaria", "Cordova")
    assert world.unused_maps == ("World",)
    assert [region_map.country for region_map in world.maps] == list(NAMES[:6])
    fox = read_nouns(packages[GLOSSES.name])[0]
    assert (fox.word, fox.kind, fox.gloss) == ("fox", "animal", "a animal of its own")


def test_the_page_counts_what_is_there(made: tuple[Path, World, list[Picture]]) -> None:
    output, world, pictures = made
    counts = raw_counts(output / "raw")
    page = report_page(world, pictures, list(tasks(world, pictures)), counts, 1)
    assert f"| flag | 12 | {12 * TINY.flags} | {3 * TINY.flags + 9} |" in page
    assert f"| text.jsonl | {counts['text.jsonl'][0]} |" in page
    assert f"And {TINY.cards} cards with a letter alone" in page
    assert "WordNet" in page


def test_tables_ask_and_train_what_the_world_has(made: tuple[Path, World, list[Picture]]) -> None:
    _, world, pictures = made
    asked = {Path(task.record["file"]).stem for task in tasks(world, pictures)}
    for table in map(read_table, table_names()):
        for measure in table.measures:
            assert {*measure.questions} <= asked
            assert measure.loss is None or measure.loss in DATA_SETS
        for arm in table.arms:
            for phase in arm.chain(read_phases()).values():
                assert phase.data.keys() <= DATA_SETS.keys()


def test_recipes_hand_on_what_learns_and_have_room_for_the_tokens() -> None:
    recipes = Path(__file__).resolve().parents[2] / "examples" / "atlas"
    phases = ("sight", "base", "align", "pretrain", "sft")
    runs = {name: load_run([recipes / "model.yaml", recipes / f"{name}.yaml"]) for name in phases}
    assert runs["sight"].model.vision == runs["base"].model.vision
    assert runs["sight"].model.language != runs["base"].model.language  # which is thrown away
    assert {runs[name].model for name in phases[1:]} == {runs["base"].model}
    assert runs["base"].train.trainable == ("language",)
    assert runs["align"].train.trainable == ("connector",)
    assert runs["base"].model.language.vocab_size >= SMALL.vocabulary


@pytest.mark.parametrize(
    ("package", "tool", "hint"),
    [(COUNTRIES, "npm", "put world-countries-* of"), (MAPS, "apt-get", "put kgeography-data_* of")],
)
def test_a_registry_that_cannot_be_had_is_named(
    package: atlas_packages.Package,
    tool: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(atlas_packages, "PACKAGES", (package,))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SetupError, match=f"{tool} is not on this machine") as raised:
        fetch(tmp_path / "packages")
    assert hint in str(raised.value)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / tool
    program.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(SetupError, match="says: no network") as raised:
        fetch(tmp_path / "packages")
    assert "\n" not in str(raised.value)


def test_another_release_of_debian_has_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas_packages, "PACKAGES", (MAPS,))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, does in (
        ("apt-get", 'case "$*" in *=4:*) exit 100;; *) echo 9 > kgeography-data_9_all.deb;; esac'),
        ("dpkg-deb", 'cp "$2" "$3"/content'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    found = fetch(tmp_path / "packages")[MAPS.name]
    assert (found.file, found.is_pinned) == ("kgeography-data_9_all.deb", False)
    assert (found.folder / "content").read_text() == "9\n"
    (tmp_path / "apt-get").unlink()
    assert fetch(tmp_path / "packages")[MAPS.name] == found  # nothing is fetched twice


def test_files_put_there_by_hand_are_taken_and_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas_packages, "PACKAGES", (COUNTRIES,))
    (tmp_path / "world-countries-5.1.0.tgz").write_bytes(b"something else")
    with pytest.raises(SetupError, match=r"is not world-countries 5\.1\.0"):
        fetch(tmp_path)


def test_sources_say_licence_and_what_is_not_the_pinned_version() -> None:
    here = Path()
    fetched = [
        atlas_packages.Fetched(MAPS, here, "kgeography-data_9.deb", "0"),
        atlas_packages.Fetched(RENDERER, here, "resvg.whl", RENDERER.sha256[0]),
    ]
    page = sources_page(fetched)
    assert "| kgeography-data_9.deb, **not 4:22.12.3-1** | Debian | GPL-2+ |" in page
    assert "| 0.5.0 | PyPI |" in page


def test_a_folder_of_others_and_another_world_are_refused(
    tmp_path: Path, packages: dict[str, Path]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex"):
        build(BuildOptions(output=tmp_path))
    done = tmp_path / "done"
    done.mkdir()
    (done / "atlas.json").write_text('{"seed": 2}')
    with pytest.raises(ConfigError, match="another seed or size"):
        build(BuildOptions(output=done))
    with pytest.raises(DataError, match="too few to hold out 50"):
        read_world(packages, replace(TINY, held_out=50), 1)


def _is_test(line: dict[str, Any]) -> bool:
    return line.get("split", "test") == "test"

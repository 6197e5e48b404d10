"""What every command shares: its options, its help, its one-line mistakes and its doors."""

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import PositiveInt

from vila_mc.commands import ask, convert_checkpoint, evaluate, preprocess_data, train_tokenizer
from vila_mc.commands.command import Job, run_job
from vila_mc.commands.main import COMMANDS
from vila_mc.commands.main import main as console_main
from vila_mc.config.options import Argument, field_docs, flag, read_options
from vila_mc.config.usual_names import _USUAL_FLAGS
from vila_mc.data.chat_templates import TEMPLATES
from vila_mc.data.ingest.corpus_text import TEXT_KEYS
from vila_mc.data.sources.kinds import KINDS
from vila_mc.errors import ConfigError, DataError, VilaError

ROOT = Path(__file__).resolve().parents[3]
Main = Callable[..., int]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What two jobs share."""

    source: Annotated[Path, Argument("DIR", is_positional=True)]
    """Where from."""
    output: Annotated[Path, Argument("FILE")]
    """Where to."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Copies things."""

    images: tuple[str, ...] = ()
    """Images (default: none)."""
    max_pixels: PositiveInt = 10
    """Largest image, up to 100 %."""
    kind: Literal["new", "old"] = "new"
    """Which."""
    share: float | None = None
    """A share (default: all)."""
    one: Annotated[tuple[int, ...], Argument("N", takes_one=True)] = ()
    """Numbers, one at a time (default: none)."""
    resume: bool = False
    """Go on."""


def read(*arguments: str) -> Options:
    return read_options(Options, arguments, prog="copy", description="Copies things.")


def test_values_get_the_types_of_their_fields() -> None:
    given = read(
        *("from", "--output", "12", "--images", "a", "b", "--images", "none", "--resume"),
        *("--max-pixels", "3", "--kind", "old", "--share", "1e-3"),
    )
    assert given == Options(
        source=Path("from"),
        output=Path("12"),
        images=("a", "b", "none"),
        max_pixels=3,
        kind="old",
        share=1e-3,
        resume=True,
    )
    assert read("from", "--output", "to") == Options(source=Path("from"), output=Path("to"))
    given = read("--one", "1", "--one", "2", "from", "--output", "to")
    assert given == Options(source=Path("from"), output=Path("to"), one=(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from"], "the following arguments are required: --output. Run with --help"),
        (["--output", "to"], "the following arguments are required: DIR"),
        (["from", "--ouptut", "to"], "--ouptut is not an option. Did you mean --output?"),
        (["from", "--output", "to", "a b"], "'a b' belongs to no option. Put quotes around"),
        (["from", "--output"], "argument --output: expected one argument"),
        (["from", "--output", "o", "--max-pixels", "0"], "--max-pixels is 0; it must be greater"),
        (["from", "--output", "o", "--max-pixels", "x"], "--max-pixels is x; give a whole number"),
        (["from", "--output", "o", "--max-pixels", "1.5"], "is 1.5; give a whole number"),
        (["from", "--output", "o", "--kind", "odd"], "--kind is odd; it must be 'new' or 'old'"),
        (["from", "--output", "o", "--share", "all"], "--share is all; give a number"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("it is too large.", option="max_pixels"), "it is too large. See --max-pixels."),
        (ConfigError("max_pixels is 0.", option="max_pixels"), "--max-pixels is 0."),
        (DataError("it is too large.", option="other"), "it is too large."),
        (DataError("it is too large."), "it is too large."),
    ],
)
def test_an_error_below_names_the_flag_of_the_command(error: VilaError, message: str) -> None:
    def run(options: Options) -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        run_job(Job(Options, run), ["from", "--output", "to"], "copy")
    assert str(caught.value) == message


OPTIONS = [
    (train_tokenizer.main, (), train_tokenizer.TokenizerOptions),
    (ask.main, (), ask.AskOptions),
    (evaluate.main, (), evaluate.EvaluateOptions),
    *((preprocess_data.main, (kind,), options) for kind, options in KINDS.items()),
    (convert_checkpoint.main, ("import",), convert_checkpoint.ImportOptions),
    (convert_checkpoint.main, ("export",), convert_checkpoint.ExportOptions),
    (convert_checkpoint.main, ("verify",), convert_checkpoint.VerifyOptions),
    (convert_checkpoint.main, ("inspect",), convert_checkpoint.InspectOptions),
    (convert_checkpoint.main, ("relink",), convert_checkpoint.RelinkOptions),
]


@pytest.mark.parametrize(
    ("main", "job", "options"), OPTIONS, ids=[options.__name__ for _, _, options in OPTIONS]
)
def test_help_is_what_the_fields_say(
    main: Main, job: tuple[str, ...], options: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*job, "--help"], "tool")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    docs = field_docs(options)
    for field in fields(options):
        assert docs[field.name] in shown
        assert flag(field.name) in shown or "is_positional=True" in str(field.type)
    assert " ".join((options.__doc__ or "").split()) in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "hf-llava", "--question", "What?"], "--question is given, but the proof of"),
        (["--format", "vila", "--image", "x.png"], "--image is given, but the proof of vila"),
        (["--no-verify", "--question", "What?"], "--question is given, but --no-verify leaves"),
        (["--no-verify", "--result", "x.json"], "--result is given, but --no-verify leaves"),
    ],
)
def test_a_question_that_no_proof_puts_is_refused(more: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_checkpoint.main(["export", "--checkpoint", "x", "--output", "y", *more], "tool")
    assert message in str(caught.value)


PARTS = ["--llm", "x", "--vision", "y"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "x", "--select-layer", "-1"], "--select-layer is given, but --model says it"),
        (["--model", "x", "--image-size", "28"], "--image-size is given, but only --vision is"),
        ([*PARTS, "--select-layer", "0"], "--select-layer is 0; it counts from the end: -1 is the"),
        ([*PARTS, "--model", "z"], "give either --model, or both --llm and --vision."),
    ],
)
def test_an_import_takes_options_where_they_mean_something(
    given: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_checkpoint.main(["import", *given, "--output", str(tmp_path / "out")], "tool")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_help_lists_what_the_package_knows() -> None:
    for options in (ask.AskOptions, evaluate.EvaluateOptions, KINDS["conversations"]):
        shown = field_docs(options)["template"].replace(" (its own)", "")
        assert ", ".join(TEMPLATES) in shown
    assert ", ".join(TEXT_KEYS) in field_docs(train_tokenizer.TokenizerOptions)["input"]


USUAL_FLAGS = [
    (("preprocess", "conversations"), "--inputs", "--input"),
    (("preprocess", "conversations"), "--image_folder", "--images"),
    (("preprocess", "conversations"), "--data-path", "--input"),
    (("preprocess", "conversations"), "--conv-mode", "--template"),
    (("preprocess", "text"), "--output-prefix", "--output"),
    (("preprocess", "text"), "--tokenizer-model", "--tokenizer"),
    (("preprocess", "text"), "--json-keys", "--text-key"),
    (("preprocess", "text"), "--num-workers", "--workers"),
    (("preprocess", "pairs"), "--text-key", "--caption-key"),
    (("tokenizer",), "--force", "--overwrite"),
    (("tokenizer",), "--vocabulary-size", "--vocab-size"),
    (("evaluate",), "--model-path", "--checkpoint"),
    (("evaluate",), "--question-file", "--questions"),
    (("evaluate",), "--answers-file", "--output"),
    (("evaluate",), "--batch-size", "--batch"),
    (("convert", "export"), "--torch_dtype", "--dtype"),
    (("convert", "export"), "--max-shard-size", "--shard-size"),
    (("train",), "--nproc_per_node", "--ranks"),
    (("train",), "--nnodes", "--nodes"),
]


def run_console(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the console script refuses."""
    monkeypatch.setattr("sys.argv", ["vila-mc", *arguments])
    with pytest.raises(VilaError) as caught:
        console_main()
    return str(caught.value)


@pytest.mark.parametrize(("command", "given", "meant"), USUAL_FLAGS)
def test_other_tools_names_point_to_ours(
    command: tuple[str, ...], given: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run_console([*command, given, "x"], monkeypatch)
    assert said == f"{given} is not an option. Did you mean {meant}?"


def test_usual_flags_lead_to_options() -> None:
    known = {field.name for _, _, options in OPTIONS for field in fields(options)}
    known |= {"ranks", "nodes", "rendezvous", "config"}
    assert set(_USUAL_FLAGS) <= known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--ranks", "two"), "--ranks is two; give a whole number."),
        (("train", "--nodes", "1.5"), "--nodes is 1.5; give a whole number."),
        (("train", "--ranks", "0"), "--ranks is 0 and --nodes is 1; each must be at least 1."),
        (("evaluate", "--top_k", "1"), "--top_k is not an option: there is no choice among the k"),
        (
            ("train", "--train.optim", "lion"),
            "--train.optim is not an option: there is no optimizer but AdamW.",
        ),
        (("train", "--mm_projector_lr", "1"), "Did you mean --optimizer.parts.connector.lr?"),
        (("train", "--rehearse", "--check"), "--rehearse and --check are both given"),
        (
            ("train", "--as-ranks", "8"),
            "--as-ranks is given without --rehearse, so it would change",
        ),
        (("train", "--gpu-memory", "80"), "--gpu-memory is given without --rehearse"),
        (("train", "--check", "--json"), "--json is given without --rehearse"),
    ],
)
def test_odd_values(arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said in run_console(arguments, monkeypatch)


@pytest.mark.parametrize("option", ["--check", "--rehearse"])
def test_what_trains_nothing_is_no_rank(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "out a launcher." in run_console(("train", option), monkeypatch)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_doors(name: str) -> None:
    module, _ = COMMANDS[name]
    main = importlib.import_module(f"vila_mc.commands.{module}").main
    door = (ROOT / "tools" / f"{module}.py").read_text()
    assert f"from vila_mc.commands.{module} import main" in door
    assert f"vila-mc {name}" in door
    assert callable(main)
    itself = (ROOT / "vila_mc" / "commands" / f"{module}.py").read_text()
    assert itself.endswith('if __name__ == "__main__":\n    run_cli(main)\n')


@pytest.mark.parametrize("module", ["main", "report"])
def test_a_module_of_a_command_can_be_started(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"vila_mc.commands.{module}", "--hlep"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_an_installed_wheel_has_the_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [*scripts] == ["vila-mc"]
    assert callable(EntryPoint("vila-mc", scripts["vila-mc"], "console_scripts").load())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["trian"], "invalid choice: 'trian' (choose from"),
        (["convert", "exprot"], "invalid choice: 'exprot'"),
        (["train", "--train.step", "1"], "--train.step is not an option. Did you mean --train.st"),
        (["train", "--train.fp8", "delayed"], "--train.fp8 is not an option. Did you mean --trai"),
        (["evaluate", "--question", "x"], "--question is not an option. Did you mean --questions"),
        (["train", "--train.stepss", "1"], "--train.stepss is not an option. Did you mean --tr"),
        (["evaluate", "--chekpoint", "x"], "--chekpoint is not an option. Did you mean --checkp"),
        (
            ["preprocess", "text", "--input", "x", "--output", "d/", "--tokenizer", "t"],
            "--output is 'd/', a folder",
        ),
        (
            ["preprocess", "text", "--input", "x", "--output", str(ROOT), "--tokenizer", "t"],
            f"--output is '{ROOT}', a folder; add the name of the dataset, such as {ROOT}/pairs",
        ),
    ],
)
def test_the_console_script_ends_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["vila-mc", *arguments])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    with pytest.raises(SystemExit) as ended:
        EntryPoint("vila-mc", scripts["vila-mc"], "console_scripts").load()()
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1

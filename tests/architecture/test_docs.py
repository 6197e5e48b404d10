"""What the documentation names exists: linked files, scripts, options and make targets."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.forked import run_script

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "csrc" / "README.md"])
SCRIPT = re.compile(r"(?:^|\s)((?:tools|examples|benchmarks|tests|\.ci)/[\w./-]*\w)")
TOOL = re.compile(r"(tools/\w+\.py|vila-mc [a-z]+)(?:\s+([a-z]+))?")
"""A command, by either door, and its subcommand if it has one."""
CONSOLE_SCRIPT = "from vila_mc.commands.main import vila_mc; vila_mc()"
OPTION = re.compile(r"\s--([a-z][\w.-]*)")


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def commands(document: Path) -> list[str]:
    """Lines of the shell blocks of a document; continued lines are joined."""
    blocks = re.findall(
        r"^```(?:bash|sh|shell|console)\n(.*?)^```",
        document.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@cache
def help_of(tool: str, *subcommand: str) -> str:
    name, *command = tool.split()
    door = [name] if name.endswith(".py") else ["-c", CONSOLE_SCRIPT, *command]
    done = subprocess.run(
        [sys.executable, *door, *subcommand, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{tool} --help failed:\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [target for target in targets if "://" not in target and ":" not in target]
    missing = [target for target in local if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_name_scripts_that_exist(document: Path) -> None:
    named = {script for command in commands(document) for script in SCRIPT.findall(command)}
    assert not [script for script in sorted(named) if not (ROOT / script).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_use_options_that_exist(document: Path) -> None:
    for command in commands(document):
        tool = TOOL.search(command)
        if tool is None:
            continue
        for option in OPTION.findall(command[tool.end() :]):
            assert f"--{option}" in help_of(*filter(None, tool.groups())), f"{command}: --{option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [
        target
        for command in commands(document)
        if command.startswith("make ")
        for target in re.findall(r"\s([a-z0-9]+)\b", command.split("#")[0])
    ]
    assert set(named) <= targets


NEWCOMERS = (
    "1F1B splice distcp gloo NCCL packing micro-batch rank stage checkpoint blend epoch token "
    "connector projector tensor pipeline sequence context replica all-reduce recompute logits "
    "safetensors torchrun rendezvous shard frozen"
)
"""Words that the documents use of people who have not trained a model before."""


@pytest.mark.parametrize("word", NEWCOMERS.split())
def test_the_glossary_explains_what_newcomers_meet(word: str) -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]{20,} \|$", GLOSSARY.read_text(), flags=re.MULTILINE)
    assert [row for row in rows if word in row]


@pytest.mark.parametrize("document", ["README.md", "docs/training.md", "docs/parallelism.md"])
def test_newcomers_are_led_to_the_glossary(document: str) -> None:
    assert "glossary.md)" in (ROOT / document).read_text()


@pytest.mark.parametrize("benchmark", sorted(ROOT.glob("benchmarks/*.py")), ids=name)
def test_benchmarks_start(benchmark: Path) -> None:
    done = run_script(benchmark, "--help")
    assert done.code == 0, done.err

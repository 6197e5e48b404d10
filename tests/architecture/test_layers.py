"""The walls of the house: who may import whom, and what importing costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
LIGHT_MODULES = (
    "vila_mc",
    "vila_mc.errors",
    "vila_mc.flow",
    "vila_mc.config.load",
    "vila_mc.config.run",
    "vila_mc.topology.layout",
    "vila_mc.topology.stage_plan",
    "vila_mc.data.batches.datasets",
    "vila_mc.planner.replay",
    "vila_mc.convert.formats.registry",
    "vila_mc.evaluation.report",
)


def test_layers_hold() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_planning_and_reporting_need_neither_torch_nor_megatron(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'megatron', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_message_below_the_commands_names_a_flag() -> None:
    """The commands add theirs; ``--config`` and ``--help`` are made where options are."""
    exempt = ("vila_mc/commands/", "vila_mc/config/load.py", "vila_mc/config/options.py")
    named = []
    for file in sorted(ROOT.glob("vila_mc/**/*.py")):
        if str(file.relative_to(ROOT)).startswith(exempt):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr):
                continue  # docstrings
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    named += [(file.name, flag) for flag in FLAG.findall(part.value)]
    # of pip and of zstd
    assert named == [("fresh_request.py", "--no-deps"), ("compressed.py", "--long")]


def test_docs_name_every_module_that_sends_objects_to_other_ranks() -> None:
    """They are pickled on the way, so docs/security.md says what they are."""
    calls = re.compile(r"\b(?:all_gather_object|gather_object|broadcast_object_list)\(")
    documented = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    modules = [
        str(file.relative_to(ROOT / "vila_mc"))
        for file in sorted(ROOT.glob("vila_mc/**/*.py"))
        if calls.search(file.read_text(encoding="utf-8"))
    ]
    assert modules, "nothing is found any more"
    assert [name for name in modules if f"`{name}`" not in documented] == []

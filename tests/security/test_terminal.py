"""What a stranger wrote reaches a terminal only through ``say``, which spells escapes out."""

import ast
from pathlib import Path

import pytest

from vila_mc.errors import say

PACKAGE = Path(__file__).resolve().parents[2] / "vila_mc"
DOORS = ("errors.py", "observe/console.py")
"""``say`` itself, and the progress line, which is numbers alone."""


def _prints_values(file: Path) -> bool:
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return any(
        isinstance(call.func, ast.Name)
        and call.func.id == "print"
        and not all(isinstance(value, ast.Constant) for value in call.args)
        for call in calls
    )


def test_no_other_door_to_the_terminal() -> None:
    files = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    assert {name for name, file in files.items() if _prints_values(file)} == set(DOORS)


@pytest.mark.parametrize("to_stderr", [False, True])
def test_escapes_are_spelled_out(capsys: pytest.CaptureFixture[str], to_stderr: bool) -> None:
    say("one\x1b]0;owned\x07\r\u202e\ud800\ntwo", to_stderr=to_stderr)
    printed = capsys.readouterr()
    lines = "one\\x1b]0;owned\\x07\\r\\u202e\\ud800\ntwo\n"
    assert (printed.out, printed.err) == (("", lines) if to_stderr else (lines, ""))

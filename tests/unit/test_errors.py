"""How a command line tool ends: exit codes and what is printed."""

import errno
import subprocess
import sys

import pytest

from vila_mc.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    RankError,
    SetupError,
    VilaError,
    user_error,
)


def run_tool(body: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` as the main function of a tool in a process of its own."""
    program = (
        "import errno\nfrom vila_mc.errors import ConfigError, run_cli\n"
        f"def main():\n    {body}\nrun_cli(main)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_success_is_0() -> None:
    done = run_tool("print('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_tools_own_code_is_kept() -> None:
    assert run_tool("return 3").returncode == 3


def test_a_users_mistake_is_2_with_one_line() -> None:
    done = run_tool("raise ConfigError('x is 3; use 4.')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: x is 3; use 4.\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError(errno.ENOSPC, 'No space left on device', '/out/a')", "no space left for /out/a"),
        ("OSError(errno.EDQUOT, 'Quota', '/out/a')", "no space left for /out/a"),
        (
            "PermissionError(errno.EACCES, 'Permission denied', '/out/a')",
            "/out/a cannot be used: Permission denied",
        ),
        (
            "OSError(errno.EROFS, 'Read-only file system', '/out/a')",
            "Choose a place you can write to",
        ),
        (
            "FileNotFoundError(errno.ENOENT, 'No such file or directory', '/proc/out')",
            "/proc/out cannot be used: No such file or directory. Check the path",
        ),
        ("OSError(errno.ENOSPC, 'Full', '/out/.a.html.partial')", "left for /out/a.html. Free"),
        ("OSError(errno.EACCES, 'Forbidden', '.out.partial')", "error: out cannot be used"),
        ("OSError(errno.EIO, 'Input/output error', 'a')", "the disk of a fails: Input/output"),
        ("OSError(errno.ESTALE, 'Stale file handle', 'a')", "Look at the disk or its mount"),
        ("OSError(errno.EFBIG, 'File too large', 'a')", "a grows larger than this file system"),
        ("OSError(errno.ENAMETOOLONG, 'File name too long', 'aaa')", "File name too long. Check"),
    ],
)
def test_a_disk_that_cannot_be_written_is_2_with_one_line(error: str, words: str) -> None:
    done = run_tool(f"raise {error}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError('ours')",
        "FileNotFoundError(errno.ENOENT, 'x')",
        "BrokenPipeError(errno.EPIPE, 'of a worker')",
    ],
)
def test_our_fault_is_1_with_a_traceback(error: str) -> None:
    done = run_tool(f"raise {error}")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_a_reader_that_has_enough_is_no_fault() -> None:
    code = (
        "from vila_mc.errors import run_cli, say\n"
        "run_cli(lambda: [say('x' * 10000) for _ in range(100)] and 0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + 13


def test_ctrl_c_is_130() -> None:
    done = run_tool("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, SetupError, RankError])
def test_every_kind_is_a_vila_error(kind: type[Exception]) -> None:
    assert issubclass(kind, VilaError)


def test_an_error_without_a_file_speaks_of_the_output() -> None:
    explained = user_error(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(explained, SetupError)
    assert "the output" in str(explained)

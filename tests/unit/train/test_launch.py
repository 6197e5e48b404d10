"""What the launcher makes of the ranks' exit codes."""

from types import SimpleNamespace

import pytest

from vila_mc.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER_ERROR
from vila_mc.train.launch import _explain


class Failed:
    """torchrun's ChildFailedError, as far as the launcher reads it."""

    def __init__(self, *exit_codes, message=""):
        data = {"message": {"message": message}}
        self.failures = {
            rank: SimpleNamespace(exitcode=code, error_file_data=data)
            for rank, code in enumerate(exit_codes)
            if code
        }

    def get_first_failure(self):
        return next(iter(self.failures.items()))


@pytest.mark.parametrize(
    ("exit_codes", "was_stopped", "code", "line"),
    [
        ((130, 130), True, EXIT_INTERRUPTED, "stopped and saved; the same command"),
        ((130, 0), False, EXIT_INTERRUPTED, "stopped and saved"),  # the cluster told a rank
        ((-2, -2), True, EXIT_INTERRUPTED, "stopped before the first step"),
        ((2, 1), False, EXIT_USER_ERROR, "error: model.x is 3; use 2."),
        ((1, 1), False, EXIT_FAULT, "error: rank 0 ended with exit code 1; the other ranks"),
        ((0, -9), False, EXIT_FAULT, "error: rank 1 was killed by SIGKILL; the other ranks"),
    ],
)
def test_exit_code_and_line(exit_codes, was_stopped, code, line, capsys):
    failed = Failed(*exit_codes, message="ConfigError: model.x is 3; use 2.")
    assert _explain(failed, was_stopped) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ({"message": "SetupError: no space left: none."}, "no space left: none."),
        ("plain words", "plain words"),
        ({}, ""),
    ],
)
def test_the_message_of_a_rank_in_every_form_torchrun_records(recorded, shown, capsys):
    failed = Failed(2)
    failed.failures[0].error_file_data = {"message": recorded}
    assert _explain(failed, was_stopped=False) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: {shown}\n"

"""The fresh process of a proof: load a directory as a user would, compute, compare, report.

Usage: ``python -m vila_mc.convert.proof.fresh_process FOLDER``. Each folder in it holds a
``FreshRequest`` and gets a result.json.
"""

import json
import sys
from pathlib import Path

import torch

from vila_mc.convert.proof.check_export import check_export
from vila_mc.convert.proof.check_source import SOURCE_CHECKS
from vila_mc.convert.proof.fresh_request import INSTALLED_BY, RESULT, VALUES
from vila_mc.convert.proof.reloaded import ModelFaultError

CHECKS = {"export": check_export, **SOURCE_CHECKS}
"""Each takes the directory, the folder of the request and its values, and gives a result."""


def main() -> None:
    """Entry point."""
    answer_requests(Path(sys.argv[1]))


def answer_requests(folder: Path) -> None:
    """Answer every request in a folder, each by a result.json.

    A result has ``fault``, a sentence, where the directory is not what it should be.
    """
    for request in sorted(path.parent for path in folder.glob(f"*/{VALUES}")):
        wanted = json.loads((request / VALUES).read_text(encoding="utf-8"))
        try:
            with torch.inference_mode():
                result = CHECKS[wanted["check"]](Path(wanted["directory"]), request, wanted)
        except ImportError as error:
            if error.name not in INSTALLED_BY:
                raise
            advice = INSTALLED_BY[error.name]
            result = {"fault": f"{error.name} is not installed. Install it: {advice}."}
        except ModelFaultError as fault:
            result = {"fault": str(fault)}
        (request / RESULT).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The signatures of the real extension, recorded from its source package.

    python -m pip download --no-deps --no-build-isolation --no-binary :all: \
        transformer_engine_torch==2.20.2
    python -m tests.te.signatures transformer_engine_torch-2.20.2.tar.gz

writes ``signatures.json``. Nothing is compiled or executed: pybind.cpp binds the functions and
names most of their arguments, extensions.h has the prototypes of the others.
"""

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("signatures.json")
_BINDING = re.compile(r'm\.def\(\s*"(\w+)",\s*&?([\w:]+)')
_NAMED = re.compile(r'py::arg\("(\w+)"\)')


def recorded() -> dict[str, Any]:
    """version and sha256 of the source package; of each function its arguments, and whether they
    can be given by name (``is_named``)."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


def read(package: Path) -> dict[str, Any]:
    """What ``recorded`` returns, from a source package."""
    with tarfile.open(package) as archive:
        (binding,) = _texts(archive, "csrc/extensions/pybind.cpp")
        (header,) = _texts(archive, "csrc/extensions.h")
        (about,) = _texts(archive, "/PKG-INFO", depth=2)
    found = re.search(r"^Version: (.+)$", about, flags=re.MULTILINE)
    assert found is not None, f"{package} does not say its version"
    functions = {}
    for match in _BINDING.finditer(binding):
        name, function = match.groups()
        named = _NAMED.findall(binding[match.start() : binding.index(");", match.end())])
        arguments = named or _prototype(header, function.rpartition("::")[2])
        functions[name] = {"is_named": bool(named), "arguments": arguments}
    return {
        "version": found[1],
        "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "functions": dict(sorted(functions.items())),
    }


def _texts(archive: tarfile.TarFile, ending: str, depth: int | None = None) -> list[str]:
    files = [
        archive.extractfile(member)
        for member in archive
        if member.name.endswith(ending) and depth in (None, member.name.count("/") + 1)
    ]
    return [file.read().decode() for file in files if file is not None]


def _prototype(header: str, function: str) -> list[str]:
    """Names of the parameters; none where the function is not declared there."""
    found = re.search(rf"\b{function}\(([^;]*?)\);", header, flags=re.DOTALL)
    if found is None:
        return []
    parts, depth = [""], 0
    for letter in found[1]:
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.split("=")[0].split()[-1].strip("&*") for part in parts if part.strip()]


def write(record: dict[str, Any]) -> None:
    """One line for each function."""
    functions = [f"{json.dumps(n)}: {json.dumps(f)}" for n, f in record["functions"].items()]
    head = "".join(f"{json.dumps(n)}: {json.dumps(record[n])},\n" for n in ("version", "sha256"))
    body = ",\n".join(functions)
    RECORD.write_text(f'{{{head}"functions": {{\n{body}\n}}}}\n')


if __name__ == "__main__":
    write(read(Path(sys.argv[1])))

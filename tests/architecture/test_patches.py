"""Every attribute of somebody else's module that is replaced stands in a register."""

import ast
import importlib
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from vila_mc import patch
from vila_mc.emulation import te_patches
from vila_mc.parallel import megatron_patches
from vila_mc.patch import Patch, owner_and_name
from vila_mc.rehearsal import device_patches

PACKAGE = Path(patch.__file__).parent


def entries(register: ModuleType) -> dict[str, Patch]:
    """What a register replaces, by the names of its entries."""
    return {name: value for name, value in vars(register).items() if type(value) is Patch}


PATCHES = entries(megatron_patches) | entries(te_patches) | entries(device_patches)
PUTS_BACK = {
    "checkpoint/safe_index.py": ["delattr(record, name)", "setattr(record, name, value)"],
}
"""What undoes a change that a pickle made."""
FOREIGN = ("megatron", "torch", "transformer_engine", "transformers", "numpy")


def replacements(source: str) -> list[str]:
    """Lines that assign to an attribute of an imported foreign name, or call setattr."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(n.asname or n.name).split(".")[0]: n.name for n in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    foreign = {name for name, full in imported.items() if full.split(".")[0] in FOREIGN}
    # A foreign module under another name is as foreign.
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _root(node.value) in foreign:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_alias = isinstance(node.value, (ast.Name, ast.Attribute))
            foreign |= {t.id for t in targets if isinstance(t, ast.Name) and is_alias}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            if _root(node) in foreign:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            found += [] if ast.unparse(node.args[0]) == "self" else [ast.unparse(node)]
    return found


def _root(node: ast.AST | None) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize(
    "planted",
    [
        "import megatron.core\nmegatron.core.utils.f = 1",
        "from megatron.core import optimizer as o\no.Adam = 1",
        "from torch import nn\nnn.Module.forward = 1",
        "from torch.distributed import checkpoint\nx: object = checkpoint\nx.pickle = 1",
        "import torch\nsetattr(torch, 'zeros', 1)",
        "import torch\ndel torch.Tensor.cuda",
    ],
)
def test_a_planted_patch_is_seen(planted: str) -> None:
    assert replacements(planted)


def test_nothing_is_replaced_outside_the_registers() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(patch.__file__)
        and (lines := replacements(path.read_text(encoding="utf-8")))
    }
    assert found == PUTS_BACK


@pytest.mark.parametrize("name", PATCHES)
def test_every_entry_is_applied_where_it_says(name: str) -> None:
    file = importlib.import_module(PATCHES[name].where).__file__
    assert file is not None
    source = Path(file).read_text(encoding="utf-8")
    assert re.search(rf"\b{name}\.(applied|put_on|at)\(", source)


def test_every_target_exists_in_the_version_it_was_written_against() -> None:
    assert version("megatron-core") == megatron_patches.VERSION
    # tests/te looks for those of te_patches
    for entry in (entries(megatron_patches) | entries(device_patches)).values():
        for target in entry.targets:
            owner, name = owner_and_name(target)
            assert hasattr(owner, name), target

"""Who may import whom, checked from the source: cli -> llm, demo -> compiler, artifact -> stages -> tosa -> errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tosaic

ROOT = Path(tosaic.__file__).parent
STAGES = {"capture", "quantization", "lower", "optimize", "emit", "execute", "report"}
# what each layer may import of the package, besides itself and what is in all lower layers
LAYERS = [
    {"errors"},
    {"processes", "digits"},
    {"tosa", "converter", "operators"},
    STAGES,
    {"compiler", "assembly", "artifact", "executors", "verification", "comparison", "layers", "engine", "scoring", "zoo"},
    {"llm", "demo"},
    {"cli"},
]
# `cli/models.py` looks at what a user's function returned, and is imported late
TORCH = {"operators", "capture", "quantization", "lower", "execute", "compiler", "scoring", "layers", "zoo", "demo", "llm"}
TORCH_FILES = {"cli/models.py"}
EXEMPT = {("lower/docs.py", "quantization"): "writes docs/ops.md, which shows both; run by itself, and imported by nothing"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether at run time (not for type checkers only)."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tosaic" else [str(node.module)]
            yield from ((name, id(node) not in for_types) for name in names)


def part(path: Path) -> str:
    """The first name below the package: a stage, or a module beside them."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level(name: str) -> int:
    found = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert found, f"'{name}' belongs to no layer; add it to LAYERS"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_layers(path: Path) -> None:
    own = part(path)
    if own == "__init__":  # the public names, which it imports when they are asked for
        assert all(name.startswith("tosaic.errors") or not at_run_time for name, at_run_time in imports(path) if name.startswith("tosaic"))
        return
    for name, _ in imports(path):
        other = name.split(".")[1] if name.startswith("tosaic.") else None
        if other is None or other == own or other.startswith("__") or (str(path.relative_to(ROOT)), other) in EXEMPT:
            continue
        if other in tosaic.__all__ or name == "tosaic":
            assert level(own) > level("compiler"), f"{path}: a stage imports the public names"
            continue
        assert level(other) < level(own) or level(own) == level(other) == level("compiler"), f"{path}: {own} imports {other}"


def test_only_some_import_torch() -> None:
    for path in FILES:
        uses = any(name.split(".")[0] in ("torch", "torchao") and at_run_time for name, at_run_time in imports(path))
        allowed = part(path) in TORCH or str(path.relative_to(ROOT)) in TORCH_FILES
        assert allowed or not uses, f"{path} imports torch"


def test_checkpoints_are_read_as_weights_only() -> None:
    """torch.load runs what a file says, unless weights_only is set."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), f"{path}:{node.lineno}"

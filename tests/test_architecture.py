"""The rule of imports: who may know whom, which library lives where, and no cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bin", "policies", "proxy", "shadow", "store")
MAY_IMPORT = {
    "bin": set(PACKAGES),
    "policies": {"policies"},
    "proxy": {"policies", "proxy"},
    "shadow": {"policies", "shadow"},
    "store": {"policies", "store"},
}
HOMES = {
    "httptools": {"proxy"},
    "sqlite_utils": {"store"},
    "llama_cpp": {"shadow/engine.py"},
    "yaml": {"policies/config.py", "bin"},
    "click": {"bin"},
    "uvloop": {"bin"},
}
# Decisions are pure: time, chance and the world outside come in as values.
BANNED_IN_POLICIES = {"asyncio", "os", "random", "socket", "subprocess", "threading", "time"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path, *, typing: bool = True) -> Iterator[str]:
    """Full names of what a file imports; not those for a type checker only if `typing` is false."""
    tree = ast.parse(path.read_text())
    skipped = set() if typing else set(_typing_only(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from _from(node)


def _from(node: ast.ImportFrom) -> Iterator[str]:
    """`from store import sse` imports a module of ours; `from store.sse import Event` a name."""
    assert node.module is not None
    for alias in node.names:
        inner = ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
        yield f"{node.module}.{alias.name}" if inner.exists() else node.module


def _typing_only(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (inner for statement in node.body for inner in ast.walk(statement))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name)
def test_a_file_imports_only_what_its_folder_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for imported in imports(path):
        root = imported.partition(".")[0]
        if root in PACKAGES:
            assert root in MAY_IMPORT[package], f"{name(path)} imports {imported}"
        if root in HOMES:
            assert {package, name(path)} & HOMES[root], f"{name(path)} imports {root}"
        if package == "policies":
            assert root not in BANNED_IN_POLICIES, f"{name(path)} imports {root}"


def test_there_are_no_import_cycles() -> None:
    modules = {name(path)[: -len(".py")].replace("/", "."): path for path in sources()}
    edges = {
        module: {found for found in imports(path, typing=False) if found in modules}
        for module, path in modules.items()
    }
    while edges:
        free = {module for module, needed in edges.items() if not needed & edges.keys()}
        assert free, f"a cycle among {sorted(edges)}"
        edges = {module: needed for module, needed in edges.items() if module not in free}


def test_only_the_known_folders_and_files_are_at_the_top() -> None:
    folders = {".ci", "proxy", "policies", "shadow", "store", "bin", "tests"}
    found = {path.name for path in ROOT.iterdir() if path.is_dir()}
    made = {name for name in found if name.startswith(".") or name in ("understudy-data", "dist")}
    assert found - made - {"__pycache__"} <= folders

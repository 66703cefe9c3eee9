"""The tree against docs/architecture.md: rooms, who may import whom, and how large things may grow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.paths import ROOT

ROW = re.compile(r"^\| `(?P<room>\w+)/` \|.*\| (?P<may_import>[^|]*) \|$", re.M)
MAX_LINES = 350
MAX_SHARE = 0.25  # of the product's lines, in one room


@cache
def rooms() -> dict[str, set[str]]:
    """Which rooms each room may import, as the table of docs/architecture.md says."""
    table = (ROOT / "docs" / "architecture.md").read_text()
    return {row["room"]: set(re.findall(r"\w+", row["may_import"])) for row in ROW.finditer(table)}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Modules below cosmos_triton that a file imports, wherever in it: for types alone and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cosmos_triton"):
            package = node.module.removeprefix("cosmos_triton").lstrip(".")
            for name in node.names:  # a module of the package, or a name in the module
                inner = f"{package}.{name.name}".lstrip(".")
                yield inner if inner in modules() else package
        elif isinstance(node, ast.Import):
            yield from (
                n.name.removeprefix("cosmos_triton.") for n in node.names if n.name.startswith("cosmos_triton.")
            )


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for room in rooms() for path in sources(room)}


def test_every_room_is_in_the_table_and_linked_below_the_import_root() -> None:
    linked = {path.name for path in (ROOT / "cosmos_triton").iterdir() if path.is_symlink()}
    assert linked == set(rooms())
    for room in linked:
        assert (ROOT / "cosmos_triton" / room).resolve() == ROOT / room


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    assert sources(room)
    allowed = rooms()[room] | {room}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imports(path)
        if name.split(".")[0] not in allowed
    }
    assert not wrong


def test_rooms_import_only_downwards() -> None:
    """Each only what stands above it in the table; so there are no cycles between rooms."""
    names = list(rooms())
    for name, allowed in rooms().items():
        assert allowed <= set(names[: names.index(name)]), name


def test_no_modules_import_each_other() -> None:
    graph = {name: set(imports(path)) & set(modules()) - {name} for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_files_and_rooms_stay_small() -> None:
    lines = {room: {path: len(path.read_text().splitlines()) for path in sources(room)} for room in rooms()}
    assert not {path for files in lines.values() for path, count in files.items() if count > MAX_LINES}
    product = sum(sum(files.values()) for files in lines.values())
    assert not {room for room, files in lines.items() if sum(files.values()) > MAX_SHARE * product}


def test_mocks_are_for_tests() -> None:
    assert not [path for path in modules().values() if "unittest" in path.read_text()]

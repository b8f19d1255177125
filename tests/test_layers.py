"""Imports of the package go one way: the table in docs/architecture.md says which."""

import ast
import re
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "q43nl_numba"
PUBLIC = PACKAGE.name
FILE_MODULES = {
    "glob", "io", "json", "mmap", "os", "pathlib", "pickle", "shutil", "tempfile", "zipfile"
}  # fmt: skip
"""Modules of the standard library for files and what is in them."""


def read_table():
    """Return ``{module: (row, modules it may import, outside names it may import)}``."""
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- layers: begin -->")[1].split("<!-- layers: end -->")[0]
    rows = [line.split("|")[1:-1] for line in table.strip().splitlines()[2:]]
    result = {}
    for number, (modules, inside, outside) in enumerate(rows):
        allowed = None if outside.strip() == "any" else names_in(outside)
        for module in names_in(modules):
            assert module not in result, f"{module} stands in two rows"
            result[module] = (number, names_in(inside), allowed)
    return result


def names_in(cell):
    return re.findall(r"`(\w+)`", cell)


TABLE = read_table()
SOURCES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path):
    """Return the name under which the table has a file: that of its folder or its own."""
    first = path.relative_to(PACKAGE).parts[0]
    return PUBLIC if first == "__init__.py" else first.removesuffix(".py")


def imports_of(path):
    """Yield ``(line, dotted name, is relative)`` of all modules and names that a file imports."""
    package = [PUBLIC, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}", bool(node.level)


def target_of(name):
    """Return the table's name of what an import inside the package refers to."""
    _, *rest = name.split(".")
    is_public_name = len(rest) == 1 and rest[0] not in TABLE
    return PUBLIC if not rest or is_public_name else rest[0]


def is_limited(top):
    """Return whether a module is another project's, or the standard library's for files."""
    return top not in sys.stdlib_module_names or top in FILE_MODULES


def wrong_imports(path):
    """Yield what a file imports though its row of the table does not name it."""
    _, inside, outside = TABLE[unit_of(path)]
    mates = [name for name, (row, _, _) in TABLE.items() if row == TABLE[unit_of(path)][0]]
    for line, name, _ in imports_of(path):
        top = name.partition(".")[0]
        if top == PUBLIC:
            if target_of(name) not in (*inside, *mates):
                yield f"{path.relative_to(PROJECT)}:{line}: {name}"
        elif is_limited(top) and outside is not None and top not in outside:
            yield f"{path.relative_to(PROJECT)}:{line}: {name}"


def test_the_table_has_every_module():
    assert {unit_of(path) for path in SOURCES} == set(TABLE)


def test_the_table_goes_one_way():
    for module, (row, inside, _) in TABLE.items():
        for name in inside:
            assert TABLE[name][0] > row, f"{module} must be above {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports(path):
    assert list(wrong_imports(path)) == []


def test_no_search_opens_files():
    """Nothing below `convert` calls `open`, apart from the cache of kernels."""
    lowest_with_files = TABLE["_text"][0]
    for path in SOURCES:
        if TABLE[unit_of(path)][0] > lowest_with_files and unit_of(path) != "_cache":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
            assert "open" not in names, path


def test_imports_inside_the_package_are_relative():
    absolute = [
        f"{path.relative_to(PROJECT)}:{line}: {name}"
        for path in SOURCES
        for line, name, relative in imports_of(path)
        if name.partition(".")[0] == PUBLIC and not relative
    ]
    assert absolute == []

"""Change the package in small ways, one at a time, and see whether the tests notice.

    python .ci/mutate.py q43nl_numba/convert/rules.py --tests tests/test_convert_folders.py

A mutant that the tests pass with *survives*: what was changed is held by no test, or changes
nothing that counts. The driver works on a copy of the tree, needs POSIX and the ``test`` extra, and
prints every survivor. Each mutant is tested in a fork of a process that has imported what is heavy.

    --sample N    so many mutants of each file, chosen by --seed (default: all)
    --lines N...  only those of these lines, for instance to see that a new test kills a survivor
    --plain       with kernels as plain Python (NUMBA_DISABLE_JIT=1), for files of kernels
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import importlib
import itertools
import os
import py_compile
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = (
    "numpy", "scipy.special", "scipy.stats", "numba", "pytest", "safetensors.numpy", "ml_dtypes",
    "gguf", "tokenizers", "tqdm", "dask", "hypothesis.extra.numpy",
)  # fmt: skip
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def places(tree: ast.Module) -> list[tuple[int, int]]:
    """Return every change that can be made: the number of a node, and which change of it."""
    passed_over = _without_effect(tree)
    return [
        (number, choice)
        for number, node in enumerate(ast.walk(tree))
        if node not in passed_over
        for choice, _ in enumerate(_changes(node))
    ]


def mutant(tree: ast.Module, number: int, choice: int) -> tuple[int, str, str]:
    """Return the line of a change, what it changes, and the changed source."""
    changed = copy.deepcopy(tree)
    node = next(itertools.islice(ast.walk(changed), number, None))
    change = next(itertools.islice(_changes(node), choice, None))
    before = ast.unparse(node).splitlines()
    line = change()
    after = ast.unparse(ast.fix_missing_locations(node)).splitlines()
    differing = itertools.zip_longest(before, after, fillvalue="")
    old, new = next((pair for pair in differing if pair[0] != pair[1]), ("", ""))
    return line, f"{old.strip():.90}  ->  {new.strip():.90}", ast.unparse(changed)


def _without_effect(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes that decide about nothing.

    Those are annotations, guards against mistakes of programmers, types of Numba, which plain
    Python does not read and which fit or fail, and the 1 of ``reshape(-1)``, in the place of which
    NumPy takes any number.
    """
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        found += [getattr(node, field, None) for field in ("annotation", "returns")]
        if isinstance(node, ast.keyword) and node.arg in ("strict", "frozen"):
            found.append(node)
        if isinstance(node, (ast.Subscript, ast.Call)) and ast.unparse(node).startswith("types."):
            found.append(node)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reshape":
            found += [part.operand for part in node.args if isinstance(part, ast.UnaryOp)]
    return {node for top in found if top is not None for node in ast.walk(top)}


def _changes(node: Any) -> Iterator[Callable[[], int]]:
    """Yield functions that change a node in place, each in one way, and return its line."""
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield partial(_set, node, node, "value", _other_number(node.value))
    if type(getattr(node, "op", None)) in SWAPS:
        yield partial(_set, node, node, "op", SWAPS[type(node.op)]())
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            if type(operator) in SWAPS:
                yield partial(_set, node, node.ops, number, SWAPS[type(operator)]())
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield partial(_set, node, node, "test", ast.UnaryOp(ast.Not(), node.test))
    is_block = not isinstance(node, (ast.Module, ast.ClassDef))
    for field in ("body", "orelse", "finalbody") if is_block else ():
        statements = getattr(node, field, None)
        for number, statement in enumerate(statements if isinstance(statements, list) else ()):
            if _can_be_dropped(statement, node):
                yield partial(_set, statement, statements, number, ast.Pass())


def _set(node: Any, owner: Any, key: Any, value: Any) -> int:
    """Set an attribute or item of an owner; return a node's line."""
    line = int(node.lineno)
    if isinstance(owner, list):
        owner[key] = value
    else:
        setattr(owner, key, value)
    return line


def _other_number(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value or 1.0


def _can_be_dropped(statement: ast.stmt, block: ast.AST) -> bool:
    """Return whether a block without the statement is still a program: no name gets lost."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Return):
        return not isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
    return isinstance(statement, (ast.Raise, ast.AugAssign, ast.Break, ast.Continue, ast.Delete))


def passes(tree: Path, tests: list[str], seconds: float) -> bool:
    """Run the tests in a fork of this process; return whether they pass in time."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(_run_tests(tree, tests))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(tree: Path, tests: list[str]) -> int:
    """Run the tests on the copy, with the kernels that were compiled of what was not changed."""
    log = os.open(tree / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.chdir(tree)
    sys.path[0:0] = [str(tree)]
    import pytest

    cache = importlib.import_module("q43nl_numba._cache")
    cache._build_digest = lambda: "mutation"  # a change of Python that no kernel is made of
    try:
        # To rewrite asserts, all of hypothesis included, takes longer than most tests.
        options = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain")
        return min(int(pytest.main([*options, *tests])), 100)
    except BaseException:
        return 1
    finally:
        sys.stdout.flush()


def main() -> int:
    """Test the mutants of the files that were asked for; return 0 if none survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--tests", nargs="+", required=True, metavar="TEST")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", nargs="+", type=int, metavar="LINE")
    parser.add_argument(
        "--seconds", type=float, help="after which a mutant is dead (default: 20 and 4 times as "
        "long as the tests take)",
    )  # fmt: skip
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    os.environ["CI"] = "true"  # the same examples for every mutant
    if args.plain:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    tree = Path(tempfile.mkdtemp(prefix="q43nl-mutate-"))
    try:
        return _test_all(args, tree)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _test_all(args: argparse.Namespace, tree: Path) -> int:
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "shared", "build", "dist")
    shutil.copytree(PROJECT, tree, dirs_exist_ok=True, ignore=ignored, symlinks=True)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(tree / "kernels"))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree / "tests"))
    for folder in ("q43nl_numba", "tests"):
        compileall.compile_dir(
            tree / folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )
    for name in HEAVY:
        importlib.import_module(name)
    if not passes(tree, args.tests, 3600):  # and compile the kernels
        print((tree / "log").read_text(), "the tests must pass before anything is changed")
        return 2
    started = time.monotonic()
    passes(tree, args.tests, 3600)
    seconds = time.monotonic() - started
    print(f"unchanged: {seconds:.1f} s", flush=True)
    limit = args.seconds or 20 + 4 * seconds
    survived = sum([_test_file(tree, name, args, limit) for name in args.files])
    print(f"{survived} survived, {time.monotonic() - started:.0f} s")
    return int(survived > 0)


def _test_file(tree: Path, name: str, args: argparse.Namespace, limit: float) -> int:
    """Test the mutants of a file; return how many survive."""
    path = tree / name
    source = path.read_text(encoding="utf-8")
    module = ast.parse(source)
    chosen = places(module)
    random.Random(args.seed).shuffle(chosen)
    if args.lines:
        chosen = [place for place in chosen if mutant(module, *place)[0] in args.lines]
    mutants = sorted(mutant(module, *place) for place in chosen[: args.sample])
    alive = 0
    for line, what, changed in mutants:
        path.write_text(changed, encoding="utf-8")
        if passes(tree, args.tests, limit):
            alive += 1
            print(f"SURVIVED {name}:{line}: {what}", flush=True)
    path.write_text(source, encoding="utf-8")
    print(f"{name}: {len(mutants)} of {len(chosen)} mutants, {alive} survived", flush=True)
    return alive


if __name__ == "__main__":
    sys.exit(main())

"""Change the package in small ways, one at a time, and see whether the tests notice.

    python .ci/mutate.py q43nl_numba/convert/rules.py --tests tests/test_convert_folders.py

A mutant that the tests pass with *survives*: what was changed is held by no test, or changes
nothing that counts. The driver works on a copy of the tree, needs POSIX and the ``test`` extra, and
prints every survivor. Each mutant is tested in a fork of a process that has imported what is heavy.

    --sample N    so many mutants of each file, chosen by --seed (default: all)
    --plain       with kernels as plain Python (NUMBA_DISABLE_JIT=1), for files of kernels
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = (
    "numpy", "scipy.special", "scipy.stats", "numba", "pytest", "safetensors.numpy", "ml_dtypes",
    "gguf", "tokenizers", "tqdm", "dask",
)  # fmt: skip
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def mutations(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield the line, a description and the changed module of every mutation."""
    types = _nodes_of_types(tree)
    for number, place in enumerate(ast.walk(tree)):
        for variant in range(0 if place in types else 2):
            changed = copy.deepcopy(tree)
            node = next(n for i, n in enumerate(ast.walk(changed)) if i == number)
            before = ast.unparse(node) if hasattr(node, "lineno") else ""
            if _change(node, variant):
                after = ast.unparse(node)
                yield node.lineno, f"{before:.90}  ->  {after:.90}", changed


def _nodes_of_types(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes of annotations, which decide about nothing."""
    types = [getattr(node, field, None) for node in ast.walk(tree)
             for field in ("annotation", "returns")]  # fmt: skip
    return {node for kind in types if kind is not None for node in ast.walk(kind)}


def _change(node: ast.AST, variant: int) -> bool:
    """Change one node in place; return False where there is nothing to change."""
    if isinstance(node, ast.Constant):
        return _change_constant(node, variant)
    if variant:
        return _change_statement(node)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp)) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
        return True
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
        return True
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        ast.fix_missing_locations(node)
        return True
    return False


def _change_constant(node: ast.Constant, variant: int) -> bool:
    if variant or not isinstance(node.value, (bool, int, float)) or not hasattr(node, "lineno"):
        return False
    node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    return True


def _change_statement(node: ast.AST) -> bool:
    """Drop the last call or raise of a block, or return nothing."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and not isinstance(node, (ast.Module, ast.ClassDef)):
        last = body[-1]
        is_call = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
        if is_call or isinstance(last, ast.Raise):
            body[-1] = ast.copy_location(ast.Pass(), last)
            return True
    return False


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
        return min(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])), 100)
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
    parser.add_argument("--seconds", type=float, default=120, help="after which a mutant is dead")
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
    for name in HEAVY:
        importlib.import_module(name)
    started = time.monotonic()
    if not passes(tree, args.tests, 3600):
        print((tree / "log").read_text(), "the tests must pass before anything is changed")
        return 2
    print(f"unchanged: {time.monotonic() - started:.1f} s", flush=True)
    survived = 0
    for name in args.files:
        path = tree / name
        source = path.read_text(encoding="utf-8")
        mutants = list(mutations(ast.parse(source)))
        random.Random(args.seed).shuffle(mutants)
        mutants = sorted(mutants[: args.sample], key=lambda mutant: mutant[0])
        alive = 0
        for line, what, changed in mutants:
            path.write_text(ast.unparse(ast.fix_missing_locations(changed)), encoding="utf-8")
            if passes(tree, args.tests, args.seconds):
                alive += 1
                print(f"SURVIVED {name}:{line}: {what}", flush=True)
        path.write_text(source, encoding="utf-8")
        survived += alive
        print(f"{name}: {len(mutants)} mutants, {alive} survived", flush=True)
    print(f"{survived} survived, {time.monotonic() - started:.0f} s")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())

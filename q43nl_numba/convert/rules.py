"""Ordered rules: which tensors are packed, and how.

A rule file is TOML with a table for each rule. The first rule whose pattern matches a tensor's name
decides; tensors that no rule matches get what the run's own arguments say.

    [[rule]]
    pattern = "lm_head.*"           # or a list of patterns
    keep = true                     # or a dtype to cast to: "float16"

    [[rule]]
    pattern = "*.down_proj.*"
    method = "optimal"              # and its parameters
    effort = 7
    importance = "importance.safetensors"
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np

from .. import q43nl
from .errors import ModelFileError, optional_package

#: What copied floating tensors can be cast to, as safetensors calls it; None leaves them.
CAST_TO: Final = {"as-is": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

#: The choices of ``keep_dtype``.
KEEP_DTYPES: Final[tuple[str, ...]] = tuple(CAST_TO)

_RULE_KEYS: Final = ("pattern", "keep", "method", "importance")
_NEAR_MISSES: Final = 3


@dataclass(frozen=True)
class Treatment:
    """How a tensor is packed: arguments of `q43nl`, and the path of an importance file."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    importance: str | None = None

    def description(self) -> dict[str, Any]:
        """Return what decides about the bytes, as JSON has it; the number of threads does not."""
        found: dict[str, Any] = {"method": self.method}
        for name, value in self.options:
            if name != "num_threads":
                found[name] = value.item() if isinstance(value, np.generic) else value
        if self.importance is not None:
            found["importance"] = os.path.basename(self.importance)
        return found


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors that a pattern matches.

    Attributes
    ----------
    patterns : tuple of str
        Name patterns (``*``, ``?``, ``[...]``); one must match.
    keep : str or None
        One of `KEEP_DTYPES`: the tensors are not packed. None: they are.
    method : str or None
        How they are packed; None for the run's own method.
    options : tuple of (str, value)
        Keyword arguments of `q43nl`.
    importance : str or None
        Path of an importance file; None for the run's own.
    """

    patterns: tuple[str, ...]
    keep: str | None = None
    method: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    importance: str | None = None

    def matches(self, name: str) -> bool:
        """Tell whether the rule is about a tensor."""
        return matches(name, self.patterns)

    def treatment(self, default: Treatment) -> Treatment:
        """Return how the rule's tensors are packed, given what the run's arguments say."""
        common = dict(default.options)
        if self.method is not None and self.method != default.method:
            common = {k: v for k, v in common.items() if k in ("eps_scale", "num_threads")}
        return Treatment(
            self.method or default.method,
            tuple({**common, **dict(self.options)}.items()),
            self.importance or default.importance,
        )

    def description(self) -> dict[str, Any]:
        """Return the rule as JSON has it."""
        found: dict[str, Any] = {"pattern": list(self.patterns)}
        if self.keep is not None:
            return {**found, "keep": self.keep}
        if self.method is not None:
            found["method"] = self.method
        if self.importance is not None:
            found["importance"] = os.path.basename(self.importance)
        return {**found, **dict(self.options)}


def check_treatment(treatment: Treatment) -> None:
    """Raise what `q43nl` raises about its arguments, before any file is touched."""
    q43nl(np.empty(0, np.float32), treatment.method, **dict(treatment.options))


def read_rules(path: str) -> tuple[Rule, ...]:
    """Read a rule file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not TOML, or a rule is not what it must be.
    ModuleNotFoundError
        On Python 3.10, if ``tomli`` (of the ``convert`` extra) is missing.
    """
    toml = importlib.import_module("tomllib") if sys.version_info >= (3, 11) else None
    toml = toml or optional_package("tomli")
    with open(path, "rb") as file:
        try:
            content = toml.load(file)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{path}: is not TOML ({error})") from error
    unknown = content.keys() - {"rule"}
    tables = content.get("rule", [])
    if unknown or not isinstance(tables, list):
        found = sorted(unknown)[0] if unknown else "rule"
        raise ModelFileError(f"{path}: must hold [[rule]] tables, found {found!r}")
    folder = os.path.dirname(path)
    return tuple(_rule(f"{path}: rule {n}", folder, table) for n, table in enumerate(tables, 1))


def _rule(where: str, folder: str, table: Any) -> Rule:
    """Return the rule that a table describes; paths in it start from a folder."""
    if not isinstance(table, dict):
        raise ModelFileError(f"{where} must be a table, found {table!r:.80}")
    pattern = table.get("pattern")
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if not isinstance(patterns, list) or not patterns or not _all_strings(patterns):
        raise ModelFileError(f"{where}: pattern must be one or more strings, found {pattern!r:.80}")
    keep = _keep(where, table.get("keep"))
    options = {key: value for key, value in table.items() if key not in _RULE_KEYS}
    method, importance = table.get("method"), table.get("importance")
    if keep is not None and (options or method or importance):
        raise ModelFileError(
            f"{where}: a rule with keep must have no method, parameter, importance"
        )
    if not _all_strings(value for value in (method, importance) if value is not None):
        raise ModelFileError(f"{where}: method and importance must be strings")
    if importance is not None:
        if "\0" in importance:
            raise ModelFileError(f"{where}: importance must be a path, found {importance!r:.80}")
        importance = os.path.join(folder, importance)
    rule = Rule(tuple(patterns), keep, method, tuple(options.items()), importance)
    _check_options(where, rule)
    return rule


def _keep(where: str, keep: Any) -> str | None:
    """Return the dtype of kept tensors, or None where they are packed."""
    if keep is None or keep is False:
        return None
    if keep is True:
        return "as-is"
    if keep in KEEP_DTYPES:
        return str(keep)
    raise ModelFileError(
        f"{where}: keep must be true or one of {', '.join(KEEP_DTYPES)}, found {keep!r:.80}"
    )


def _check_options(where: str, rule: Rule) -> None:
    """Check the method and the parameters of a rule."""
    if "num_threads" in dict(rule.options):
        raise ModelFileError(f"{where}: num_threads is an argument of the run, not of a rule")
    if rule.method is None:
        return
    try:
        check_treatment(Treatment(rule.method, rule.options))
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{where}: {error}") from error


def patterns(argument: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of an argument; a string is one pattern.

    >>> patterns("exclude", "lm_head*"), patterns("exclude", ["a", "b"])
    (('lm_head*',), ('a', 'b'))
    """
    found = (value,) if isinstance(value, str) else tuple(value)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must hold patterns (str), found {pattern!r}")
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of some patterns matches a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def near_misses(pattern: str, names: Iterable[str]) -> str:
    """Return, for an error, the names that a pattern may have meant, with numbers as ``*``.

    >>> near_misses("*.mpl.*", ["l.0.mlp.weight", "l.1.mlp.weight", "norm"])
    "; near misses: 'l.*.mlp.weight'"
    """
    kinds = sorted({re.sub(r"\d+", "*", name) for name in names})
    words = pattern.strip("*")
    close = difflib.get_close_matches(words, kinds, _NEAR_MISSES, 0.6)
    for kind in kinds:
        parts = kind.split(".")
        near = difflib.get_close_matches(words.strip("."), parts, 1, 0.6)
        if near and kind not in close and len(close) < _NEAR_MISSES:
            close.append(kind)
    return "; near misses: " + ", ".join(map(repr, close)) if close else ""


def _all_strings(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)

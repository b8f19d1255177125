"""Rule files (TOML)."""

from __future__ import annotations

import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import harness

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

with harness.instrumented():
    from q43nl_numba.convert import plan_model

from model_files import gauss, write_model

_RULES: list[dict[str, Any]] = [
    {"pattern": "lm_head*", "keep": "float16"},
    {"pattern": ["*.down", "x"], "method": "optimal", "effort": 7},
    {"pattern": "*", "method": "grid", "grid_size": 17, "eps_scale": 1e-6},
    {"pattern": "y", "importance": "importance.safetensors"},
]


@functools.cache
def seeds() -> list[bytes]:
    """Return rules of all kinds."""
    return [_toml({"rule": _RULES}), _toml({"rule": _RULES[1:3]}), _toml({"rule": _RULES[:1]})]


def _toml(content: Any) -> bytes:
    """Return a document of tables as TOML."""
    rules = content.get("rule") if isinstance(content, dict) else content
    if not isinstance(rules, list):
        return f"rule = {_value(rules)}\n".encode("utf-8", "surrogatepass")
    lines = []
    for rule in rules:
        if isinstance(rule, dict):
            lines.append("[[rule]]")
            lines += [f"{json.dumps(key)} = {_value(value)}" for key, value in rule.items()]
        else:
            lines.append(f"rule = {_value(rule)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _value(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value) if value is not None else '""'


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change one value; bytes of what is no TOML."""
    try:
        return _toml(harness.mutate_tree(tomllib.loads(data.decode()), rng))
    except (ValueError, RecursionError, AttributeError, TypeError):
        return harness.mutate_bytes(data, rng)


def read(folder: Path, data: bytes) -> None:
    """Plan a conversion by the rules."""
    tensors = {name: gauss((2, 32)) for name in ("lm_head", "l.down", "x", "y")}
    write_model(folder / "model", tensors)
    (folder / "rules.toml").write_bytes(data)
    plan_model(folder / "model", folder / "out", rules=folder / "rules.toml")


READER = harness.Reader("rules", seeds, read, mutate)

if __name__ == "__main__":
    harness.main(READER)

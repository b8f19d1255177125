"""The machine and the versions that figures come from."""

from __future__ import annotations

from importlib import metadata

from asv_bench.tables.contenders import PEERS
from q43nl_numba.compare import machine_facts


def most_threads() -> int:
    """The threads that a call uses where it is not told."""
    return int(machine_facts()["threads"])


def facts() -> str:
    """The machine and the versions, in a sentence's words."""
    known = machine_facts()
    packages = ("numba", "numpy", "scipy", *PEERS)
    versions = [f"Python {known['python']}", *filter(None, map(version, packages))]
    return f"{known['cpu']}, {threads_word(int(known['threads']))}; {', '.join(versions)}"


def version(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


def threads_word(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"

"""Print which Python this is, and the versions of what the package needs."""

import importlib.metadata
import platform

NAMES = ("numpy", "numba", "scipy", "hypothesis", "pytest")

print(
    f"Python {platform.python_version()}:",
    ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NAMES),
)

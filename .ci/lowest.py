"""Print pip constraints that pin every requirement of setup.cfg to its lower bound.

``pip install --constraint FILE ".[test]"`` then installs the oldest releases that the package
promises to work with. What those need in turn is not named in setup.cfg, and stays free.
"""

import configparser
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[[\w, -]*\])?(?:>=(?P<bound>[\w.]+))?(?:;\s*(?P<marker>.*))?"
)


def constraints(text: str) -> list[str]:
    """Return a line for each requirement in the text of a setup.cfg, sorted by name."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text)
    own_name = config["metadata"]["name"]
    bounds: dict[str, str] = {}
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for line in "\n".join(lists).split("\n"):
        found = REQUIREMENT.fullmatch(line.strip())
        if not line.strip() or (found and found["name"] == own_name):
            continue
        if not found or not found["bound"]:
            raise ValueError(f"setup.cfg: {line!r} must have the form NAME>=VERSION[; MARKER]")
        marker = f"; {found['marker']}" if found["marker"] else ""
        constraint = f"{found['name']}=={found['bound']}{marker}"
        if bounds.setdefault(found["name"], constraint) != constraint:
            raise ValueError(f"setup.cfg: {found['name']} must have one bound, found several")
    return [bounds[name] for name in sorted(bounds)]


if __name__ == "__main__":
    try:
        print(*constraints((PROJECT / "setup.cfg").read_text(encoding="utf-8")), sep="\n")
    except ValueError as error:
        sys.exit(str(error))

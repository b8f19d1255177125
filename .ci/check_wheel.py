"""Check that a wheel holds each file of the package that git tracks, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PACKAGE = "q43nl_numba"


def tracked_files() -> set[str]:
    """Return the paths of the package's files in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", PACKAGE], cwd=PROJECT, capture_output=True, check=True
    )
    return {name for name in listed.stdout.decode().split("\0") if name}


def main(wheel: str) -> int:
    """Print each difference; return 1 if there is one, else 0."""
    wanted = tracked_files()
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    for name in sorted(wanted ^ found):
        print(f"{name}: {'missing from' if name in wanted else 'stray in'} the wheel")
    return int(wanted != found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Check that a wheel holds every source and data file of the package, and nothing else."""

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    top = Path(__file__).parent.parent
    wanted = {p.relative_to(top).as_posix() for p in (top / "q43nl_numba").rglob("*.py")}
    wanted |= {"q43nl_numba/py.typed", "q43nl_numba/methods/predictor/network.json"}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    for name in sorted(wanted ^ found):
        print(f"{name}: {'missing from' if name in wanted else 'stray in'} the wheel")
    return int(wanted != found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

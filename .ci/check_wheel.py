"""Check what the distributions in a folder hold, and what installing the wheel adds to a Python.

The wheel: each file of the package that git tracks, its metadata, and nothing else. The sdist: each
tracked file of the folders and names that MANIFEST.in lists. Installing: the package's own folder,
its dist-info and its command.
"""

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PACKAGE = "q43nl_numba"
COMMAND = "q43nl-numba"
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}

#: What the sdist holds: the package, what MANIFEST.in lists, and what setuptools adds.
FOLDERS = (PACKAGE, "docs", "examples", "tests")
FILES = {
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md"),
    *("pyproject.toml", "setup.cfg"),
}


def tracked_files(*paths: str) -> set[str]:
    """Return the paths of files in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=PROJECT, capture_output=True, check=True
    )
    return {name for name in listed.stdout.decode().split("\0") if name}


def compare(where: str, wanted: set[str], found: set[str]) -> int:
    """Print what differs; return how much."""
    for name in sorted(wanted ^ found):
        print(f"{name}: {'missing from' if name in wanted else 'stray in'} {where}")
    return len(wanted ^ found)


def check_wheel(wheel: Path) -> int:
    """Compare the wheel's files with the repository's."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    marker = ".dist-info/"
    metadata = {name.split(marker)[1] for name in names if marker in name}
    metadata = {"licenses/LICENSE" if name == "LICENSE" else name for name in metadata}
    return (
        compare("the wheel", tracked_files(PACKAGE), {n for n in names if marker not in n})
        + compare("the wheel's metadata", METADATA, metadata)
        + (len(names) != len(set(names)))
    )


def check_sdist(sdist: Path) -> int:
    """Compare the sdist's files with the repository's."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    found = {member.name.partition("/")[2] for member in members if not member.isdir()}
    found = {name for name in found if ".egg-info/" not in name} - {"PKG-INFO"}
    strange = [member.name for member in members if not (member.isfile() or member.isdir())]
    return compare("the sdist", tracked_files(*FOLDERS, *FILES), found) + len(strange)


def wheel_folder(wheel: Path) -> str:
    """Return the name of the folder of a wheel's metadata."""
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def check_install(wheel: Path) -> int:
    """Install the wheel alone into a new environment, and look at what appeared."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        venv.create(root, with_pip=True)
        paths = sysconfig.get_paths("venv", {"base": str(root), "platbase": str(root)})
        python = Path(paths["scripts"]) / "python"
        before = {path for path in root.rglob("*") if not path.is_dir()}
        subprocess.run(
            [python, "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel], check=True
        )
        added = {path for path in root.rglob("*") if not path.is_dir()} - before
        own = [Path(paths["purelib"], folder) for folder in (PACKAGE, wheel_folder(wheel))]
        surprises = [
            path.relative_to(root)
            for path in sorted(added)
            if not any(path.is_relative_to(folder) for folder in own)
            and not (path.parent == python.parent and path.stem == COMMAND)
        ]
    for path in surprises:
        print(f"{path}: installed, and not the package's own")
    return len(surprises)


def main(folder: str) -> int:
    """Print each difference; return 1 if there is one, else 0."""
    (wheel,), (sdist,) = (list(Path(folder).glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    return int(check_wheel(wheel) + check_sdist(sdist) + check_install(wheel.resolve()) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

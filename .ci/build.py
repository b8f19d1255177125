"""Build the sdist, and the wheel from it, with the same bytes on every machine: build.py FOLDER.

What decides is git's list of files and their content. Times are those of the last commit, or of
SOURCE_DATE_EPOCH; modes are git's; the folder, its other files, the umask, the user and the time
zone do not matter. The versions of Python, setuptools and wheel do.
"""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def git(*arguments: str) -> str:
    """Return what git prints."""
    return subprocess.run(
        ["git", *arguments], cwd=PROJECT, capture_output=True, check=True, text=True
    ).stdout


def copy_tracked(target: Path, epoch: int) -> None:
    """Copy the files that git tracks, as they are in the folder, with git's modes."""
    for line in git("ls-files", "-z", "--stage").split("\0"):
        mode, _, rest = line.partition(" ")
        name = rest.partition("\t")[2]
        if not name or not (PROJECT / name).exists():
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, path)
        path.chmod(0o755 if mode == "100755" else 0o644)
        os.utime(path, (epoch, epoch))


def write_plain(sdist: Path, epoch: int) -> None:
    """Write an sdist again, in order, without users and the times of this build."""
    content = io.BytesIO()
    with (
        tarfile.open(sdist) as before,
        tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid = epoch, 0, 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            is_program = member.isdir() or member.mode & 0o100
            member.mode = 0o755 if is_program else 0o644
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    with open(sdist, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=epoch) as packed:
        packed.write(content.getvalue())


def main(folder: str) -> None:
    """Build into a folder."""
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct"))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    os.umask(0o022)
    build = [sys.executable, "-m", "build", "--outdir", str(target)]
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "source")
        copy_tracked(source, epoch)
        subprocess.run([*build, "--sdist", str(source)], env=environment, check=True)
        (sdist,) = target.glob("*.tar.gz")
        write_plain(sdist, epoch)
        with tarfile.open(sdist) as archive:
            archive.extractall(name, filter="data")
        (unpacked,) = (path for path in Path(name).iterdir() if path != source)
        subprocess.run([*build, "--wheel", str(unpacked)], env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1])

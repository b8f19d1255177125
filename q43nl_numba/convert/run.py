"""Run a conversion: one file, or a folder of files that can be resumed.

A file appears under its name when it is complete. So does a folder: until then its files are in
``<folder>.q43nl-partial``, beside a journal of those that are complete. An interrupted run leaves
that folder behind if at least one file is complete. A run that resumes goes on with the first file
that is not, after checking that input, arguments and version are the same; any other run removes
the folder and starts again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, Protocol

from .errors import ModelFileError
from .job import FilePlan, OnPiece, Progress, WrittenFile, are_complete, write_file
from .judging import Figures
from .locks import try_lock
from .output import check_output_folder, errors_name, remove_abandoned, sync_folder

PARTIAL_SUFFIX: Final = ".q43nl-partial"
_LOCK: Final = "lock"
_JOURNAL: Final = "journal.jsonl"
_FILES: Final = "files"
_SCRATCH: Final = "parts"
_BLOCK: Final = 1 << 22

#: Called now and then with how far the run is.
OnProgress = Callable[[Progress], None]


class WriteFiles(Protocol):
    """Writes files of plans into a folder and yields each when it is complete, in any order."""

    def __call__(
        self,
        plans: Sequence[FilePlan],
        folder: str,
        scratch: str,
        on_piece: OnPiece,
        *,
        no_clobber: bool = False,
    ) -> Iterator[WrittenFile]:
        """Write the files; a folder `scratch` may be used meanwhile."""


@dataclass(frozen=True)
class Unfinished:
    """A run that was interrupted: so many of its files are complete."""

    done: int
    files: int


def write_one_file(
    plan: FilePlan,
    path: str,
    *,
    no_clobber: bool = False,
    progress: OnProgress | None = None,
    write_files: WriteFiles | None = None,
) -> WrittenFile:
    """Write the file of a plan to a path, whatever the name that the plan gives it.

    The arguments are those of `write_folder`.
    """
    counter = Counter([plan], progress)
    plan = FilePlan(os.path.basename(path), plan.steps, plan.metadata)
    folder = os.path.dirname(path) or os.curdir
    if write_files is None:
        return write_file(plan, folder, no_clobber=no_clobber, on_piece=counter.add)
    scratch = path + PARTIAL_SUFFIX
    (written,) = write_files([plan], folder, scratch, counter.add, no_clobber=no_clobber)
    return written


def write_folder(
    plans: Sequence[FilePlan],
    folder: str,
    description: Mapping[str, Any],
    finish: Callable[[str], None],
    *,
    resume: bool = False,
    progress: OnProgress | None = None,
    write_files: WriteFiles | None = None,
) -> tuple[WrittenFile, ...]:
    """Write the files of some plans as a new folder, whole or not at all.

    Parameters
    ----------
    plans : sequence of FilePlan
        The files.
    folder : str
        Where they go. It must not exist, or be empty.
    description : mapping
        What decides about the bytes, as JSON has it. A run is resumed only if it is the same.
    finish : callable
        Called with the folder of the complete files, to add small ones.
    resume : bool
        Go on with an interrupted run, if there is one.
    progress : callable, optional
        Called with a `Progress` after each piece.
    write_files : callable, optional
        What writes the files, by default this process, one after the other.

    Returns
    -------
    tuple of WrittenFile
        One for each plan, those of the interrupted run included.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If the folder cannot be written, another process is writing it, or the interrupted run was
        another one.
    """
    check_output_folder(folder)
    counter = Counter(plans, progress)
    with Partial.open(folder + PARTIAL_SUFFIX, description, len(plans), resume) as partial:
        written = {}
        for plan in plans:
            done = partial.finished(plan)
            if done is not None:
                written[plan.name] = done
                counter.add(plan.name, plan.source_bytes)
        pending = [plan for plan in plans if plan.name not in written]
        write = write_files or _write_files
        for done in write(pending, partial.files, partial.scratch, counter.add):
            partial.add(done)
            written[done.name] = done
        finish(partial.files)
        partial.publish(folder)
    return tuple(written[plan.name] for plan in plans)


def unfinished(folder: str | os.PathLike[str]) -> Unfinished | None:
    """Return how far the interrupted run is that can be resumed, None where there is none.

    Parameters
    ----------
    folder : path
        The output folder.
    """
    try:
        header, done = _read_journal(os.path.join(os.fspath(folder) + PARTIAL_SUFFIX, _JOURNAL))
    except (OSError, ModelFileError):
        return None
    return Unfinished(len(done), header["files"])


def _write_files(
    plans: Sequence[FilePlan],
    folder: str,
    scratch: str,
    on_piece: OnPiece,
    *,
    no_clobber: bool = False,
) -> Iterator[WrittenFile]:
    """Write files in this process."""
    for plan in plans:
        yield write_file(plan, folder, no_clobber=no_clobber, on_piece=on_piece)


class Counter:
    """Counts the bytes that were read, of all plans together."""

    def __init__(self, plans: Sequence[FilePlan], progress: OnProgress | None) -> None:
        self._progress = progress
        self._total = sum(plan.source_bytes for plan in plans)
        self._done = 0

    def add(self, name: str, source_bytes: int) -> None:
        """Report a piece."""
        self._done += source_bytes
        if self._progress is not None:
            self._progress(Progress(self._done, self._total, name))


class Partial:
    """The folder of an unfinished run; this process holds its lock."""

    def __init__(self, path: str, lock: IO[bytes]) -> None:
        self.files = os.path.join(path, _FILES)
        self.scratch = os.path.join(path, _SCRATCH)
        self._path = path
        self._journal = os.path.join(path, _JOURNAL)
        self._lock = lock
        self._done: dict[str, WrittenFile] = {}

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: str, description: Mapping[str, Any], files: int, resume: bool
    ) -> Iterator[Partial]:
        """Create the folder, or take over the one of an interrupted run."""
        os.makedirs(path, exist_ok=True)
        with _open_lock(path) as lock:
            if not _lock(lock, lock.name):
                raise ModelFileError(f"{path}: another process is writing it")
            partial = cls(path, lock)
            if not (resume and partial._take_over(description)):
                partial._begin(description, files)
            try:
                yield partial
            finally:
                if not partial._done:
                    partial.remove()

    def _take_over(self, description: Mapping[str, Any]) -> bool:
        """Go on with the interrupted run of the same description; return False if there is none."""
        if not _has_begun(self._journal):
            return False
        header, done = _read_journal(self._journal)
        _check_same(self._path, header["description"], description)
        os.makedirs(self.files, exist_ok=True)  # killed in `remove`
        remove_abandoned(self.files)
        self._done = done
        return True

    def _begin(self, description: Mapping[str, Any], files: int) -> None:
        """Start again; where that fails, nothing stays."""
        try:
            _clear(self._path)
            os.makedirs(self.files)
            _append(self._journal, {"description": description, "files": files})
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove()
            raise

    def finished(self, plan: FilePlan) -> WrittenFile | None:
        """Return a file that the interrupted run completed, if its bytes are still the same."""
        done = self._done.get(plan.name)
        if done is None or done.nbytes != plan.nbytes:
            return None
        if not are_complete(done.findings, plan.steps):
            return None
        path = os.path.join(self.files, plan.name)
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == done.nbytes and _checksum(path) == done.checksum:
                return done
        return None

    def noted(self, name: str) -> WrittenFile | None:
        """Return what the journal notes under a name, whatever has become of the bytes since."""
        return self._done.get(name)

    def add(self, written: WrittenFile) -> None:
        """Note that a file is complete."""
        _append(self._journal, _document(written))
        self._done[written.name] = written

    def publish(self, folder: str) -> None:
        """Give the folder of the files its name."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(folder)  # an empty one
        os.rename(self.files, folder)
        self.forget()
        sync_folder(os.path.dirname(os.path.abspath(folder)))

    def forget(self) -> None:
        """Let the end of the run, whatever it is, remove the folder: the output is complete."""
        self._done = {}

    def remove(self) -> None:
        """Remove the folder, its lock last."""
        _clear(self._path)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._path, _LOCK))
            os.rmdir(self._path)


def _open_lock(path: str) -> BinaryIO:
    """Open the lock of an unfinished run's folder; leave no empty folder where that fails.

    Without a buffer, for which there might be no memory when the file is made.
    """
    try:
        return open(os.path.join(path, _LOCK), "ab", buffering=0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


def _lock(file: IO[bytes], path: str) -> bool:
    """Lock an open file, which must still be at its path.

    Without locks in the file system there is no protection.
    """
    try:
        is_locked = try_lock(file)
    except OSError:
        return True
    with contextlib.suppress(FileNotFoundError):
        return is_locked and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _clear(path: str) -> None:
    """Remove what an unfinished run left in its folder, but for the lock."""
    with os.scandir(path) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path, ignore_errors=True)
            elif item.name != _LOCK:
                os.unlink(item.path)


def _append(journal: str, document: Mapping[str, Any]) -> None:
    """Append a line to the journal and bring it to the disk."""
    with errors_name(journal), open(journal, "a", encoding="utf-8") as file:
        file.write(json.dumps(document) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _has_begun(journal: str) -> bool:
    """Return whether a journal's first line was written whole, before which no file was begun."""
    try:
        with open(journal, "rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False


def _read_journal(path: str) -> tuple[dict[str, Any], dict[str, WrittenFile]]:
    """Return the journal's first line, and the files that are complete."""
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: must be a regular file, found something else")
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")[:-1]  # a line that was cut has no end
    try:
        header, *files = [json.loads(line) for line in lines]
        if not isinstance(header["description"], dict) or not _is_count(header["files"]):
            raise ValueError("the first line is not that of a journal")
        done = [_written(document) for document in files]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: is damaged; remove the folder to start again") from error
    return header, {written.name: written for written in done}


def _document(written: WrittenFile) -> dict[str, Any]:
    """Return a complete file as the journal has it."""
    return {
        "name": written.name,
        "nbytes": written.nbytes,
        "checksum": written.checksum,
        "findings": [list(pair) for pair in written.findings],
    }


def _written(document: Mapping[str, Any]) -> WrittenFile:
    """Return a complete file from the journal, each field of the type that it must have."""
    name, nbytes, checksum = (document[key] for key in ("name", "nbytes", "checksum"))
    findings = tuple((tensor, found) for tensor, found in document["findings"])
    if not (
        isinstance(name, str)
        and _is_count(nbytes)
        and _is_count(checksum)
        and all(isinstance(tensor, str) for tensor, _ in findings)
    ):
        raise ValueError(f"must be a complete file, found {document!r:.80}")
    for _, found in findings:
        Figures.from_document(found)  # checks it
    return WrittenFile(name, nbytes, checksum, findings)


def _is_count(value: object) -> bool:
    """Tell whether a JSON value is an integer from 0 on."""
    return type(value) is int and value >= 0


def _check_same(path: str, before: Any, now: Mapping[str, Any]) -> None:
    """Refuse to resume another run; say what differs."""
    after = json.loads(json.dumps(now))
    if before == after:
        return
    where, was, found = _first_difference("", before, after)
    raise ModelFileError(
        f"{path}: cannot resume: {where} must be {was!r:.100} as in the interrupted run, found "
        f"{found!r:.100}; run without resume to start again"
    )


def _first_difference(where: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """Return the first place at which two JSON documents differ, and what is there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if before.get(key) != after.get(key):
                name = f"{where}.{key}" if where else str(key)
                return _first_difference(name, before.get(key), after.get(key))
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            if pair[0] != pair[1]:
                return _first_difference(f"{where}[{number}]", *pair)
    return where, before, after


def _checksum(path: str) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum

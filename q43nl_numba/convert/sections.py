"""Write one large file so that an interrupted run can be resumed.

The file grows beside its place, in ``<path>.q43nl-partial``, a section at a time. When a section is
on the disk, the journal there notes where it ends and the checksum up to there. A run that resumes
reads what is noted, checks it, and goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

from .job import (
    FilePlan,
    Part,
    WrittenFile,
    are_complete,
    merged_findings,
    split,
    write_shares,
)
from .output import (
    OutputFile,
    errors_name,
    mode_of,
    rename_complete,
    sync_folder,
)
from .run import PARTIAL_SUFFIX, Counter, OnProgress, Partial

#: For a section so many bytes are read: few enough that little is lost, enough that bringing it to
#: the disk costs little.
_SECTION_BYTES: Final = 1 << 28
_FILE: Final = "file"
_BLOCK: Final = 1 << 22


def write_resumable_file(
    plan: FilePlan,
    path: str,
    description: Mapping[str, Any],
    *,
    no_clobber: bool = False,
    resume: bool = False,
    progress: OnProgress | None = None,
) -> WrittenFile:
    """Write the file of a plan to a path, whole or not at all.

    Parameters
    ----------
    plan : FilePlan
        The file, whatever the name that the plan gives it.
    path : str
        Where it goes. A file that is there is replaced when the new one is complete.
    description : mapping
        What decides about the bytes, as JSON has it. A run is resumed only if it is the same.
    no_clobber : bool
        Refuse to replace an existing file.
    resume : bool
        Go on with an interrupted run, if there is one.
    progress : callable, optional
        Called with a `Progress` after each piece.

    Returns
    -------
    WrittenFile
        What was written; findings of the interrupted run included.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If the plan's tensors are not what they should be, another process is writing the file, or
        the interrupted run was another one.
    """
    plan = FilePlan(os.path.basename(path), plan.steps, plan.metadata)
    target = os.path.realpath(path)
    sections = split(plan, _SECTION_BYTES)
    with Partial.open(target + PARTIAL_SUFFIX, description, len(sections), resume) as partial:
        growing = os.path.join(partial.files, _FILE)
        with _opened(growing, path) as file:
            written = _write_sections(
                plan, path, sections, partial, file, Counter([plan], progress)
            )
        with errors_name(path):
            mode = mode_of(target)
            if mode is not None:
                os.chmod(growing, mode)
            rename_complete(growing, target, path, no_clobber=no_clobber)
            partial.forget()
        sync_folder(os.path.dirname(target))
    return written


def _write_sections(
    plan: FilePlan,
    path: str,
    sections: Sequence[Part],
    partial: Partial,
    file: BinaryIO,
    counter: Counter,
) -> WrittenFile:
    """Write the sections that the interrupted run did not complete."""
    complete = _complete_sections(partial, file, sections)
    output = _output_behind(complete, file, path, plan.header)
    findings = [section.findings for section in complete]
    for number, section in enumerate(sections):
        if number < len(complete):
            counter.add(plan.name, section.source_bytes)
            continue
        found = write_shares(section.shares, output, counter.add)
        output.settle()
        end = os.fstat(file.fileno()).st_size
        partial.add(WrittenFile(_name(number), end, output.checksum, found))
        findings.append(found)
    return WrittenFile(plan.name, plan.nbytes, output.checksum, merged_findings(plan, findings))


@contextlib.contextmanager
def _opened(growing: str, path: str) -> Iterator[BinaryIO]:
    """Open the growing file; errors about it name the file it is going to be."""
    with errors_name(path):
        file = open(growing, "ab+")  # noqa: SIM115 - closed below
    try:
        yield file
    finally:
        with errors_name(path):
            file.close()


def _name(number: int) -> str:
    """Return how the journal calls a section."""
    return f"section {number + 1}"


def _complete_sections(
    partial: Partial, file: BinaryIO, sections: Sequence[Part]
) -> list[WrittenFile]:
    """Return the sections of the interrupted run, up to the first whose bytes are not the same."""
    complete: list[WrittenFile] = []
    checksum = position = 0
    file.seek(0)
    for number, section in enumerate(sections):
        noted = partial.noted(_name(number))
        steps = [share.step for share in section.shares]
        if noted is None or not are_complete(noted.findings, steps):
            break
        for block in _blocks(file, noted.nbytes - position):
            checksum = zlib.crc32(block, checksum)
            position += len(block)
        if position != noted.nbytes or checksum != noted.checksum:
            break
        complete.append(noted)
    return complete


def _blocks(file: BinaryIO, nbytes: int) -> Iterator[bytes]:
    """Yield the next bytes of a file, a block at a time; fewer where it ends."""
    while nbytes > 0:
        block = file.read(min(nbytes, _BLOCK))
        if not block:
            return
        nbytes -= len(block)
        yield block


def _output_behind(
    complete: Sequence[WrittenFile], file: BinaryIO, path: str, header: bytes
) -> OutputFile:
    """Return the file, cut behind the complete sections, or with the header alone."""
    file.truncate(complete[-1].nbytes if complete else 0)
    output = OutputFile(file, path)
    if complete:
        output.checksum = complete[-1].checksum
    else:
        output.write(header)
    return output

"""Write the files of a run on a Dask cluster, whose workers see the same file system.

The files are split into parts of about the same size, a large tensor into several. Each part is a
task that writes a file of its own; a task whose worker is lost is done again by another one. When
all parts of a file are there, this process joins them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Final

from .. import __version__
from .errors import ModelFileError
from .job import (
    FilePlan,
    Findings,
    OnPiece,
    Part,
    WrittenFile,
    join_parts,
    split,
    write_part,
)

#: Bytes that are read for a part.
PART_BYTES: Final = 1 << 28

_SECONDS_TO_CONNECT: Final = 30


class Cluster:
    """A running Dask cluster.

    Parameters
    ----------
    address : str
        Of its scheduler, such as ``tcp://127.0.0.1:8786``.

    Raises
    ------
    OSError
        If there is no scheduler.
    ModelFileError
        If a worker has another version of this package, or there is no worker.
    ModuleNotFoundError
        If a package of the ``distributed`` extra is missing.
    """

    def __init__(self, address: str) -> None:
        distributed = _distributed()
        self._as_completed = distributed.as_completed
        try:
            self._client = distributed.Client(
                address, timeout=_SECONDS_TO_CONNECT, set_as_default=False
            )
        except (OSError, ValueError) as error:
            raise OSError(f"there is no Dask scheduler at {address}: {error}") from error
        try:
            self._check_workers(address)
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def write_files(
        self,
        plans: Sequence[FilePlan],
        folder: str,
        scratch: str,
        on_piece: OnPiece,
        *,
        no_clobber: bool = False,
    ) -> Iterator[WrittenFile]:
        """Write files into a folder and yield each when it is complete.

        The parts go to the folder `scratch`, which is removed.
        """
        run = _Run(plans, scratch)
        futures = {
            self._client.submit(_write_part, part, path, pure=False): (plan, number)
            for plan, number, part, path in run.tasks()
        }
        try:
            for future in self._as_completed(list(futures), loop=self._client.loop):
                plan, number = futures[future]
                findings = future.result()
                on_piece(plan.name, run.parts[plan.name][number].source_bytes)
                paths = run.done(plan, number, findings)
                if paths is not None:
                    yield join_parts(
                        plan, folder, paths, run.findings[plan.name], no_clobber=no_clobber
                    )
        finally:
            self._client.cancel(list(futures), force=True)
            run.remove()

    def _check_workers(self, address: str) -> None:
        """Check that there are workers, and that they make the same bytes."""
        versions = self._client.run(_version)
        if not versions:
            raise ModelFileError(f"{address}: must have a worker, found none")
        for worker, version in versions.items():
            if version != __version__:
                raise ModelFileError(
                    f"{worker}: must have version {__version__} of q43nl_numba, found {version}"
                )


class _Run:
    """The parts of all files, and which of them are complete."""

    def __init__(self, plans: Sequence[FilePlan], folder: str) -> None:
        self.parts = {plan.name: split(plan, PART_BYTES) for plan in plans}
        self.findings: dict[str, list[Findings]] = {
            name: [()] * len(parts) for name, parts in self.parts.items()
        }
        self._missing = {name: set(range(len(parts))) for name, parts in self.parts.items()}
        self._plans = plans
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)

    def tasks(self) -> Iterator[tuple[FilePlan, int, Part, str]]:
        """Yield every part with the path of its file."""
        for plan in self._plans:
            for number, part in enumerate(self.parts[plan.name]):
                yield plan, number, part, self._path(plan, number)

    def done(self, plan: FilePlan, number: int, findings: Findings) -> list[str] | None:
        """Note that a part is complete; return the paths of all if it was the last one."""
        self.findings[plan.name][number] = findings
        self._missing[plan.name].discard(number)
        if self._missing[plan.name]:
            return None
        return [self._path(plan, number) for number in range(len(self.parts[plan.name]))]

    def remove(self) -> None:
        """Remove what is left of the parts."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, plan: FilePlan, number: int) -> str:
        """Return the path of a part."""
        return os.path.join(os.path.abspath(self._folder), f"{plan.name}.{number}")


def _write_part(part: Part, path: str) -> Findings:
    """Write a part on a worker."""
    return write_part(part, path)


def _version() -> str:
    """Return a worker's version of this package."""
    from .. import __version__ as version

    return version


def _distributed() -> Any:
    """Import Dask's distributed scheduler, or say how to get it."""
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the package 'distributed' is needed for a scheduler and is not installed; in a "
            'clone of the project: pip install ".[distributed]"',
            name="distributed",
        ) from error
    return distributed

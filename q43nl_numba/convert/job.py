"""Write safetensors files from recipes: the layer that all conversions share.

A `Step` is one tensor of an output file: its entry in the header, and a `Recipe`, which makes its
bytes piece by piece. A `FilePlan` is one output file: its steps and its metadata. `write_file`
writes it whole or not at all. While one piece is made, the next ones are read and the one before
is written, each in a thread of its own.

Recipes and plans hold no open files and can be pickled: one file is one independent job, which
another process can run as well.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from q43nl_numba.convert.container import Entry, header_bytes, place
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.output import OutputFile, whole_file
from q43nl_numba.convert.tensors import StoredTensor, Tensor, piece_bounds, ranges

_READ_AHEAD: Final = 3
_WRITE_BEHIND: Final = 3

#: Where a piece of a tensor begins and ends, in the recipe's own units.
Piece: TypeAlias = tuple[int, int]

#: The bytes of a piece: an array of any dtype, C-contiguous.
Made: TypeAlias = npt.NDArray[Any]


class Maker(ABC):
    """Makes the pieces of one tensor in their order, and keeps what is found on the way."""

    @abstractmethod
    def make(self, loaded: Any) -> Made:
        """Return the bytes of a piece from what was loaded for it."""

    def finding(self) -> Any:
        """Return what was found about the whole tensor, or None; called after the last piece."""
        return None


class Recipe(ABC):
    """How the bytes of one output tensor are made."""

    @property
    @abstractmethod
    def source_bytes(self) -> int:
        """Number of bytes that are read, for the progress."""

    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """Return the pieces in which the bytes are made; their order is that of the bytes."""

    @abstractmethod
    def load(self, piece: Piece) -> Any:
        """Read what a piece is made of; called in another thread, ahead of time."""

    @abstractmethod
    def maker(self) -> Maker:
        """Return a new maker, for the pieces of one run."""


@dataclass(frozen=True)
class Step:
    """One tensor of an output file: its entry (not placed yet) and how its bytes are made."""

    target: Entry
    recipe: Recipe


@dataclass(frozen=True)
class FilePlan:
    """One output file: its name, its tensors in the order of the header, its metadata."""

    name: str
    steps: tuple[Step, ...]
    metadata: tuple[tuple[str, str], ...] = ()

    def placed(self) -> tuple[Step, ...]:
        """Return the steps, each with its place in the file."""
        targets = place(step.target for step in self.steps)
        return tuple(
            replace(step, target=target) for step, target in zip(self.steps, targets, strict=True)
        )

    def header(self) -> bytes:
        """Return the first bytes of the file.

        Raises
        ------
        ModelFileError
            If readers would refuse so long a header.
        """
        targets = [step.target for step in self.placed()]
        return header_bytes(self.name, targets, dict(self.metadata))

    @property
    def data_bytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(step.target.nbytes for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the file."""
        return len(self.header()) + self.data_bytes

    @property
    def source_bytes(self) -> int:
        """Number of bytes that are read for it."""
        return sum(step.recipe.source_bytes for step in self.steps)


@dataclass(frozen=True)
class Progress:
    """How far a run is: bytes read of all bytes to read, and the tensor that is being made."""

    done: int
    total: int
    tensor: str


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written whole, and the CRC-32 of its bytes.

    `findings` holds, by the tensors' names, what their recipes found.
    """

    name: str
    nbytes: int
    checksum: int
    findings: tuple[tuple[str, Any], ...]


#: Called after each piece, with the name of its tensor and the bytes that were read for it.
OnPiece: TypeAlias = Callable[[str, int], None]


def write_file(
    plan: FilePlan, folder: str, *, no_clobber: bool = False, on_piece: OnPiece | None = None
) -> WrittenFile:
    """Write one file of a plan into a folder, whole or not at all.

    Every size is known from the plan, so the header goes first and nothing is held back.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If the plan's tensors are not what they should be.
    """
    path = os.path.join(folder, plan.name)
    first_bytes = plan.header()
    with whole_file(path, no_clobber=no_clobber) as output:
        output.write(first_bytes)
        findings = _write_steps(plan.placed(), output, on_piece or _ignore)
    return WrittenFile(
        plan.name, len(first_bytes) + plan.data_bytes, output.checksum, tuple(findings)
    )


def in_data_order(steps: Iterable[Step]) -> list[Step]:
    """Sort placed steps by where their bytes lie in the file."""
    return sorted(steps, key=lambda step: (step.target.begin, step.target.end))


def _write_steps(
    steps: Sequence[Step], output: OutputFile, on_piece: OnPiece
) -> list[tuple[str, Any]]:
    """Write the bytes of all steps; return what was found, in the order of the steps."""
    findings: dict[str, Any] = {}
    with _thread("read") as reader, _thread("write") as writer:
        pieces = _loaded(reader, in_data_order(steps))
        for made in _made(pieces, on_piece, findings):
            writer.run(output.write, made.reshape(-1).view(np.uint8).data)
        writer.wait()
    names = (step.target.name for step in steps)
    return [(name, findings[name]) for name in names if findings.get(name) is not None]


class _Job(NamedTuple):
    """One piece of one step, and its share of the bytes that are read for the step."""

    step: Step
    piece: Piece
    is_last: bool
    source_bytes: int


def _made(
    loaded: Iterable[tuple[_Job, Any]], on_piece: OnPiece, findings: dict[str, Any]
) -> Iterator[Made]:
    """Make one piece after the other; fill in what was found about each tensor."""
    maker: Maker | None = None
    for job, content in loaded:
        maker = maker or job.step.recipe.maker()
        yield maker.make(content)
        on_piece(job.step.target.name, job.source_bytes)
        if job.is_last:
            findings[job.step.target.name] = maker.finding()
            maker = None


def _loaded(reader: _Thread, steps: Iterable[Step]) -> Iterator[tuple[_Job, Any]]:
    """Yield every piece of every step with what was loaded for it, a few of them ahead."""
    waiting: deque[tuple[_Job, Future[Any]]] = deque()
    for job in _jobs(steps):
        waiting.append((job, reader.start(job.step.recipe.load, job.piece)))
        if len(waiting) > _READ_AHEAD:
            first, content = waiting.popleft()
            yield first, content.result()
    for job, content in waiting:
        yield job, content.result()


def _jobs(steps: Iterable[Step]) -> Iterator[_Job]:
    """Yield every piece of every step."""
    for step in steps:
        pieces = step.recipe.pieces()
        done = 0
        for number, piece in enumerate(pieces, 1):
            upto = step.recipe.source_bytes * number // len(pieces)
            yield _Job(step, piece, number == len(pieces), upto - done)
            done = upto


class _Thread:
    """A thread that does one thing after the other."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._pending: deque[Future[Any]] = deque()

    def start(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do something; the caller waits for its result."""
        return self._executor.submit(work, *arguments)

    def run(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Do something, and wait only if too much is pending; raise what went wrong."""
        self._pending.append(self.start(work, *arguments))
        while len(self._pending) > _WRITE_BEHIND:
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait for what is pending; raise what went wrong."""
        while self._pending:
            self._pending.popleft().result()


@contextlib.contextmanager
def _thread(name: str) -> Iterator[_Thread]:
    """Run a thread, which has ended when the block ends, whatever the reason."""
    executor = ThreadPoolExecutor(1, f"q43nl-{name}")
    try:
        yield _Thread(executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _ignore(_name: str, _source_bytes: int) -> None:
    """Report no progress."""


# ---------------------------------------------------------------------------------------------
# Recipes that need no quantizer
# ---------------------------------------------------------------------------------------------


class _AsLoaded(Maker):
    """Takes what was loaded for the bytes."""

    def make(self, loaded: Made) -> Made:
        """Return what was loaded."""
        return loaded


@dataclass(frozen=True)
class Copy(Recipe):
    """The bytes of a stored tensor, as they are; its pieces count bytes."""

    tensor: StoredTensor

    @property
    def source_bytes(self) -> int:
        """Number of bytes of the tensor."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of bytes."""
        return ranges(self.tensor.nbytes, 1)

    def load(self, piece: Piece) -> Made:
        """Read bytes."""
        return self.tensor.stored_bytes(*piece)

    def maker(self) -> Maker:
        """Return a maker that copies."""
        return _AsLoaded()


@dataclass(frozen=True)
class Cast(Recipe):
    """The values of a tensor in another floating dtype."""

    tensor: Tensor
    dtype: str

    @property
    def source_bytes(self) -> int:
        """Number of bytes of the tensor."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of elements."""
        return piece_bounds(self.tensor.shape)

    def load(self, piece: Piece) -> Made:
        """Read values and cast them.

        Raises
        ------
        ModelFileError
            If a finite value becomes infinite.
        """
        values = self.tensor.values(*piece)
        dtype = numpy_dtype(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            cast = values.astype(dtype, copy=False)
        lost = np.isfinite(values) & ~np.isfinite(cast)
        if lost.any():
            raise self.tensor.error(f"its value {values[lost][0]} is too large for {dtype.name}")
        return cast

    def maker(self) -> Maker:
        """Return a maker that takes the cast values."""
        return _AsLoaded()


@dataclass(frozen=True)
class Literal(Recipe):
    """Bytes that are there already, such as those of a tokenizer."""

    content: bytes

    @property
    def source_bytes(self) -> int:
        """Nothing is read."""
        return 0

    def pieces(self) -> Sequence[Piece]:
        """Return one piece."""
        return [(0, len(self.content))] if self.content else []

    def load(self, piece: Piece) -> Made:
        """Return the bytes."""
        return np.frombuffer(self.content, np.uint8)

    def maker(self) -> Maker:
        """Return a maker that copies."""
        return _AsLoaded()

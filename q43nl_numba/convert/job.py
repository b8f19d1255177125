"""Write safetensors files from recipes: the layer that all conversions share.

A `Step` is one tensor of an output file: its entry in the header, and a `Recipe`, which makes its
bytes piece by piece. A `FilePlan` is one output file: its steps and its metadata. `write_file`
writes it whole or not at all. While one piece is made, the next ones are read and the one before
is written, each in a thread of its own.

Recipes and plans hold no open files and can be pickled. A `Part` is a share of a file's bytes:
other processes, on other machines too, write parts with `write_part`, and `join_parts` makes the
file of them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .container import Entry, header_bytes, place
from .dtypes import numpy_dtype
from .output import OutputFile, whole_file
from .tensors import StoredTensor, Tensor, piece_bounds, ranges

_READ_AHEAD: Final = 3
_WRITE_BEHIND: Final = 3
_BLOCK: Final = 1 << 22
_SMALL: Final = 1 << 16

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
        """Return a new maker, for consecutive pieces."""

    def merged(self, findings: Sequence[Any]) -> Any:
        """Return what was found about the tensor, from what several makers found about parts."""
        return findings[0] if findings else None


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

    @functools.cached_property
    def placed(self) -> tuple[Step, ...]:
        """The steps, each with its place in the file."""
        targets = place(step.target for step in self.steps)
        return tuple(
            replace(step, target=target) for step, target in zip(self.steps, targets, strict=True)
        )

    @functools.cached_property
    def header(self) -> bytes:
        """The first bytes of the file.

        Raises
        ------
        ModelFileError
            If readers would refuse so long a header.
        """
        targets = [step.target for step in self.placed]
        return header_bytes(self.name, targets, dict(self.metadata))

    @property
    def data_bytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(step.target.nbytes for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the file."""
        return len(self.header) + self.data_bytes

    @property
    def source_bytes(self) -> int:
        """Number of bytes that are read for it."""
        return sum(step.recipe.source_bytes for step in self.steps)


@dataclass(frozen=True)
class Share:
    """Consecutive pieces of one step, from number `first` to before `last`."""

    step: Step
    first: int
    last: int

    @property
    def source_bytes(self) -> int:
        """Number of bytes that are read for them."""
        count = len(self.step.recipe.pieces())
        return _cost(self.step.recipe, self.first, self.last, count)


@dataclass(frozen=True)
class Part:
    """Consecutive bytes of a file: shares of its steps, in the order of the data."""

    shares: tuple[Share, ...]

    @property
    def source_bytes(self) -> int:
        """Number of bytes that are read for it."""
        return sum(share.source_bytes for share in self.shares)


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
    findings: Findings


#: What was found about tensors, by their names.
Findings: TypeAlias = tuple[tuple[str, Any], ...]

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
    (part,) = split(plan)
    first_bytes = plan.header
    with whole_file(os.path.join(folder, plan.name), no_clobber=no_clobber) as output:
        output.write(first_bytes)
        findings = write_shares(part.shares, output, on_piece or _ignore)
    nbytes = len(first_bytes) + plan.data_bytes
    return WrittenFile(plan.name, nbytes, output.checksum, merged_findings(plan, [findings]))


def split(plan: FilePlan, source_bytes: int | None = None) -> tuple[Part, ...]:
    """Split a file into parts for each of which at most so many bytes are read.

    A piece is not split. By default the whole file is one part.
    """
    parts: list[list[Share]] = [[]]
    room = source_bytes
    for step in in_data_order(plan.placed):
        first, count = 0, len(step.recipe.pieces())
        for number in range(count):
            cost = _cost(step.recipe, number, number + 1, count)
            if room is not None and cost > room and (parts[-1] or first < number):
                if first < number:
                    parts[-1].append(Share(step, first, number))
                parts.append([])
                first, room = number, source_bytes
            room = None if room is None else room - cost
        if first < count:
            parts[-1].append(Share(step, first, count))
    return tuple(Part(tuple(shares)) for shares in parts)


def write_part(part: Part, path: str, on_piece: OnPiece | None = None) -> Findings:
    """Write the bytes of a part to a file of its own; return what was found about its tensors."""
    with whole_file(path) as output:
        return write_shares(part.shares, output, on_piece or _ignore)


def join_parts(
    plan: FilePlan,
    folder: str,
    paths: Sequence[str],
    findings: Sequence[Findings],
    *,
    no_clobber: bool = False,
) -> WrittenFile:
    """Write a file of a plan from its parts, whole or not at all, and remove them."""
    first_bytes = plan.header
    with whole_file(os.path.join(folder, plan.name), no_clobber=no_clobber) as output:
        output.write(first_bytes)
        for path in paths:
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    output.write(block)
    for path in paths:
        os.unlink(path)
    nbytes = len(first_bytes) + plan.data_bytes
    return WrittenFile(plan.name, nbytes, output.checksum, merged_findings(plan, findings))


def _cost(recipe: Recipe, first: int, last: int, count: int) -> int:
    """Return the bytes that are read for some of a recipe's pieces."""
    return recipe.source_bytes * last // count - recipe.source_bytes * first // count


def merged_findings(plan: FilePlan, findings: Sequence[Findings]) -> Findings:
    """Return what was found about each tensor of a plan, from what was found about its parts."""
    found: dict[str, list[Any]] = {}
    for name, finding in (pair for part in findings for pair in part):
        found.setdefault(name, []).append(finding)
    return tuple(
        (step.target.name, step.recipe.merged(found[step.target.name]))
        for step in plan.steps
        if step.target.name in found
    )


def are_complete(findings: Findings, steps: Iterable[Step]) -> bool:
    """Tell whether findings say of each packed tensor of some steps what packing it cost."""
    found = {name for name, _ in findings}
    return all(step.target.name in found for step in steps if step.target.is_packed)


def in_data_order(steps: Iterable[Step]) -> list[Step]:
    """Sort placed steps by where their bytes lie in the file."""
    return sorted(steps, key=lambda step: (step.target.begin, step.target.end))


def write_shares(shares: Iterable[Share], output: OutputFile, on_piece: OnPiece) -> Findings:
    """Write the bytes of shares; return what was found, in their order."""
    findings: list[tuple[str, Any]] = []
    with _thread("read") as reader, _thread("write") as writer:
        for block in _blocks(_made(_loaded(reader, shares), on_piece, findings)):
            writer.run(output.write, block)
        writer.wait()
    return tuple(findings)


def _blocks(pieces: Iterable[Made]) -> Iterator[memoryview | bytes]:
    """Yield the bytes of pieces; those of small ones, of which there may be many, together."""
    small: list[memoryview] = []
    size = 0
    for made in pieces:
        content = made.reshape(-1).view(np.uint8).data
        if small and (size > _BLOCK or len(content) > _SMALL):
            yield b"".join(small)
            small, size = [], 0
        if len(content) > _SMALL:
            yield content
        else:
            small.append(content)
            size += len(content)
    if small:
        yield b"".join(small)


class _Job(NamedTuple):
    """One piece of one step, whether it is the last one here, and the bytes read for it."""

    step: Step
    piece: Piece
    is_last: bool
    source_bytes: int


def _made(
    loaded: Iterable[tuple[_Job, Any]], on_piece: OnPiece, findings: list[tuple[str, Any]]
) -> Iterator[Made]:
    """Make one piece after the other; append what was found about each tensor."""
    maker: Maker | None = None
    for job, content in loaded:
        maker = maker or job.step.recipe.maker()
        yield maker.make(content)
        on_piece(job.step.target.name, job.source_bytes)
        if job.is_last:
            finding = maker.finding()
            if finding is not None:
                findings.append((job.step.target.name, finding))
            maker = None


def _loaded(reader: _Thread, shares: Iterable[Share]) -> Iterator[tuple[_Job, Any]]:
    """Yield every piece with what was loaded for it, a few of them ahead."""
    waiting: deque[tuple[_Job, Future[Any] | None]] = deque()

    def first() -> tuple[_Job, Any]:
        job, future = waiting.popleft()
        return job, job.step.recipe.load(job.piece) if future is None else future.result()

    for job in _jobs(shares):
        is_small = job.source_bytes < _SMALL  # reading it costs less than handing it over
        future = None if is_small else reader.start(job.step.recipe.load, job.piece)
        waiting.append((job, future))
        if len(waiting) > _READ_AHEAD:
            yield first()
    while waiting:
        yield first()


def _jobs(shares: Iterable[Share]) -> Iterator[_Job]:
    """Yield every piece of every share."""
    for share in shares:
        step = share.step
        pieces = step.recipe.pieces()
        for number in range(share.first, share.last):
            cost = _cost(step.recipe, number, number + 1, len(pieces))
            yield _Job(step, pieces[number], number + 1 == share.last, cost)


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

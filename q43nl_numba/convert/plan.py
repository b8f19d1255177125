"""Which tensor gets what: packed, cast or copied, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from q43nl_numba import GROUP_SIZE
from q43nl_numba.convert.container import Entry, Header, packed_entry, place, plain_entry
from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import ModelFileError

#: What copied floating tensors can be cast to, as safetensors calls it; None leaves them.
_CAST_TO = {"as-is": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

#: The choices of ``keep_dtype``.
KEEP_DTYPES: tuple[str, ...] = tuple(_CAST_TO)


@dataclass(frozen=True)
class Step:
    """What becomes of one tensor: its entry before and after, and why it is not packed."""

    source: Entry
    target: Entry
    reason: str = ""

    @property
    def same_bytes(self) -> bool:
        """Whether the tensor's bytes are copied."""
        return (self.source.dtype, self.source.qtype) == (self.target.dtype, self.target.qtype)


def plan_conversion(
    header: Header, include: Sequence[str], exclude: Sequence[str], keep_dtype: str
) -> tuple[Step, ...]:
    """Decide for every tensor of a model file whether it is packed, cast or copied.

    Raises
    ------
    ValueError
        If `keep_dtype` is not one of `KEEP_DTYPES`.
    ModelFileError
        If a pattern matches no tensor.
    """
    if keep_dtype not in _CAST_TO:
        raise ValueError(
            f"keep_dtype must be one of {', '.join(KEEP_DTYPES)}, found {keep_dtype!r}"
        )
    _check_patterns(header, include, exclude)
    steps = []
    for entry in header.entries:
        reason = _why_not_packable(entry) or _why_not_chosen(entry.name, include, exclude)
        if reason:
            steps.append(Step(entry, _kept(entry, _CAST_TO[keep_dtype]), reason))
        else:
            steps.append(Step(entry, packed_entry(entry.name, entry.shape)))
    return placed(steps)


def placed(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Give the targets of all steps their bytes in the output."""
    natural = tuple(steps)
    targets = place(step.target for step in natural)
    return tuple(
        replace(step, target=target) for step, target in zip(natural, targets, strict=True)
    )


def _why_not_packable(entry: Entry) -> str:
    """Return what keeps a tensor from being packed, or nothing."""
    if entry.dtype not in FLOATING:
        return "not floating"
    if len(entry.shape) < 2:
        return "fewer than 2 dimensions"
    if entry.shape[-1] % GROUP_SIZE:
        # a reader strides whole groups a row, so the size being a multiple is not enough
        return f"last dimension no multiple of {GROUP_SIZE}"
    if entry.size == 0:
        return "empty"
    return ""


def _why_not_chosen(name: str, include: Sequence[str], exclude: Sequence[str]) -> str:
    if include and not _matches(name, include):
        return "not included"
    if _matches(name, exclude):
        return "excluded"
    return ""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(header: Header, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse a pattern that does nothing: most likely it is misspelled."""
    for pattern in include:
        matching = [entry for entry in header.entries if fnmatchcase(entry.name, pattern)]
        if not matching:
            raise ModelFileError(f"{header.path}: include {pattern!r} matches no tensor")
        if all(_why_not_packable(entry) for entry in matching):
            raise ModelFileError(
                f"{header.path}: include {pattern!r} matches no tensor that can be quantized "
                f"({matching[0].name!r}: {_why_not_packable(matching[0])})"
            )
    for pattern in exclude:
        if not any(fnmatchcase(entry.name, pattern) for entry in header.entries):
            raise ModelFileError(f"{header.path}: exclude {pattern!r} matches no tensor")


def _kept(entry: Entry, cast_to: str | None) -> Entry:
    if cast_to is None or entry.dtype not in FLOATING:
        return entry
    return plain_entry(entry.name, cast_to, entry.shape)

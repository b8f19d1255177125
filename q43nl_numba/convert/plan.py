"""Which tensor gets what: packed, cast or copied, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from q43nl_numba import GROUP_SIZE
from q43nl_numba.convert.container import Entry, Header, packed_entry, place, plain_entry
from q43nl_numba.convert.dtypes import FLOAT8, FLOATING
from q43nl_numba.convert.errors import ModelFileError
from q43nl_numba.convert.quantized import find_scales

#: What copied floating tensors can be cast to, as safetensors calls it; None leaves them.
_CAST_TO = {"as-is": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

#: The choices of ``keep_dtype``.
KEEP_DTYPES: tuple[str, ...] = tuple(_CAST_TO)


@dataclass(frozen=True)
class Step:
    """What becomes of one tensor: its entry before and after, and why it is not packed.

    `scale` is the entry that its values are multiplied with.
    """

    source: Entry
    target: Entry
    reason: str = ""
    scale: Entry | None = None

    @property
    def same_bytes(self) -> bool:
        """Whether the tensor's bytes are copied."""
        before, after = self.source, self.target
        return (before.dtype, before.is_packed) == (after.dtype, after.is_packed)


def plan_conversion(
    header: Header, include: Sequence[str], exclude: Sequence[str], keep_dtype: str
) -> tuple[Step, ...]:
    """Decide for every tensor of a model file whether it is packed, cast or copied.

    8-bit floats that have a scale are packed as the products; their scales have no step then.

    Raises
    ------
    ValueError
        If `keep_dtype` is not one of `KEEP_DTYPES`.
    ModelFileError
        If a pattern matches no tensor, or the tensors are quantized in another format.
    """
    if keep_dtype not in _CAST_TO:
        raise ValueError(
            f"keep_dtype must be one of {', '.join(KEEP_DTYPES)}, found {keep_dtype!r}"
        )
    scales = find_scales(header.path, {entry.name: entry for entry in header.entries})
    chosen = _Choice(header, include, exclude, scales)
    packed = {entry.name for entry in header.entries if not chosen.reason(entry)}
    merged = {scale.name for name, scale in scales.items() if name in packed}
    return placed(
        Step(entry, packed_entry(entry.name, entry.shape), "", scales.get(entry.name))
        if entry.name in packed
        else Step(entry, _kept(entry, _CAST_TO[keep_dtype]), chosen.reason(entry))
        for entry in header.entries
        if entry.name not in merged
    )


def placed(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Give the targets of all steps their bytes in the output."""
    natural = tuple(steps)
    targets = place(step.target for step in natural)
    return tuple(
        replace(step, target=target) for step, target in zip(natural, targets, strict=True)
    )


class _Choice:
    """Which tensors of a file are packed, and why the others are not."""

    def __init__(
        self,
        header: Header,
        include: Sequence[str],
        exclude: Sequence[str],
        scales: Mapping[str, Entry],
    ) -> None:
        self._include = include
        self._exclude = exclude
        self._scaled = scales.keys()
        self._scales = {scale.name for scale in scales.values()}
        self._check_patterns(header)

    def reason(self, entry: Entry) -> str:
        """Return why a tensor is not packed, or nothing."""
        return self._why_not_packable(entry) or self._why_not_chosen(entry.name)

    def _why_not_packable(self, entry: Entry) -> str:
        """Return what keeps a tensor from being packed, or nothing."""
        if entry.name in self._scales:
            return "scale of an 8-bit float"
        if entry.dtype in FLOAT8 and entry.name not in self._scaled:
            return "8-bit float without scale"
        if entry.dtype not in FLOATING and entry.name not in self._scaled:
            return "not floating"
        if len(entry.shape) < 2:
            return "fewer than 2 dimensions"
        if entry.shape[-1] % GROUP_SIZE:
            # a reader strides whole groups a row, so the size being a multiple is not enough
            return f"last dimension no multiple of {GROUP_SIZE}"
        if entry.size == 0:
            return "empty"
        return ""

    def _why_not_chosen(self, name: str) -> str:
        """Return which of the user's patterns keeps a tensor from being packed, or nothing."""
        if self._include and not _matches(name, self._include):
            return "not included"
        if _matches(name, self._exclude):
            return "excluded"
        return ""

    def _check_patterns(self, header: Header) -> None:
        """Refuse a pattern that does nothing: most likely it is misspelled."""
        for pattern in self._include:
            matching = [entry for entry in header.entries if fnmatchcase(entry.name, pattern)]
            if not matching:
                raise ModelFileError(f"{header.path}: include {pattern!r} matches no tensor")
            if all(self._why_not_packable(entry) for entry in matching):
                raise ModelFileError(
                    f"{header.path}: include {pattern!r} matches no tensor that can be quantized "
                    f"({matching[0].name!r}: {self._why_not_packable(matching[0])})"
                )
        for pattern in self._exclude:
            if not any(fnmatchcase(entry.name, pattern) for entry in header.entries):
                raise ModelFileError(f"{header.path}: exclude {pattern!r} matches no tensor")


def patterns(argument: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of an argument; a string is one pattern.

    >>> patterns("exclude", "lm_head*"), patterns("exclude", ["a", "b"])
    (('lm_head*',), ('a', 'b'))
    """
    found = (value,) if isinstance(value, str) else tuple(value)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must hold patterns (str), found {pattern!r}")
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _kept(entry: Entry, cast_to: str | None) -> Entry:
    if cast_to is None or entry.dtype not in FLOATING:
        return entry
    return plain_entry(entry.name, cast_to, entry.shape)

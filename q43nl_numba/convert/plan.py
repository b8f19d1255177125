"""Decide what becomes of each tensor of a model: packed, cast or copied, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import GROUP_SIZE
from .container import Entry, packed_entry, plain_entry
from .dtypes import FLOAT8, FLOATING
from .errors import ModelFileError
from .importance import Importance, ImportanceFile
from .job import Cast, Copy, Recipe
from .model import Model
from .quantized import find_scales
from .rules import CAST_TO, Rule, Treatment, matches, near_misses
from .tensors import ScaledTensor, StoredTensor, Tensor


@dataclass(frozen=True)
class Decision:
    """What becomes of one tensor.

    Attributes
    ----------
    tensor : Tensor
        Where its values come from.
    target : Entry
        What the output holds of it, not placed yet.
    treatment : Treatment or None
        How it is packed; None if it is not.
    reason : str
        Why it is not packed.
    """

    tensor: Tensor
    target: Entry
    treatment: Treatment | None = None
    reason: str = ""


@dataclass(frozen=True)
class Wishes:
    """What the caller wants to be packed, and how.

    Attributes
    ----------
    default : Treatment
        How tensors are packed that no rule is about.
    include, exclude : tuple of str
        Patterns of the tensors that may be packed (all, if there are none), and that may not.
    rules : tuple of Rule
        The first one that matches decides.
    keep_dtype : str
        One of `KEEP_DTYPES`, for what is not packed.
    """

    default: Treatment
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    keep_dtype: str = "as-is"


def decide(model: Model, wishes: Wishes) -> tuple[Decision, ...]:
    """Decide for every tensor of a model, in its order.

    8-bit floats that have a scale are packed as the products; their scales are left out then.

    Raises
    ------
    ModelFileError
        If a pattern matches no tensor, or the tensors are quantized in another format.
    """
    scales = find_scales(model.tensors)
    choice = _Choice(model, wishes, scales)
    decisions = [choice.decide(tensor) for tensor in model.tensors.values()]
    merged = {
        decision.tensor.scale.name
        for decision in decisions
        if isinstance(decision.tensor, ScaledTensor)
    }
    return tuple(decision for decision in decisions if decision.tensor.name not in merged)


def check_not_empty(path: str, decisions: Sequence[Decision]) -> None:
    """Refuse a run that packs nothing: most likely it is not what the user meant."""
    if any(decision.treatment for decision in decisions):
        return
    reasons = Counter(decision.reason for decision in decisions).most_common()
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "it has none"
    raise ModelFileError(
        f"{path}: no tensor is to be quantized ({listed}); allow_empty permits that"
    )


def kept_recipe(decision: Decision) -> Recipe:
    """Return how the bytes of a tensor are made that is not packed."""
    tensor, target = decision.tensor, decision.target
    if isinstance(tensor, StoredTensor) and tensor.dtype == target.dtype:
        return Copy(tensor)
    return Cast(tensor, target.dtype)


class _Choice:
    """Which tensors are packed, and why the others are not."""

    def __init__(self, model: Model, wishes: Wishes, scales: Mapping[str, StoredTensor]) -> None:
        self._model = model
        self._wishes = wishes
        self._scales = scales
        self._scale_names = {scale.name for scale in scales.values()}
        self._check_patterns()
        self._rules = self._rules_by_name()

    def decide(self, tensor: Tensor) -> Decision:
        """Return what becomes of a tensor."""
        rule = self._rules.get(tensor.name)
        reason = self._why_not_packable(tensor) or self._why_not_chosen(tensor.name, rule)
        if reason:
            keep = rule.keep if rule and rule.keep else self._wishes.keep_dtype
            return Decision(tensor, _kept_entry(tensor, CAST_TO[keep]), None, reason)
        treatment = self._wishes.default
        if rule is not None:
            treatment = rule.treatment(treatment)
        scale = self._scales.get(tensor.name)
        if scale is not None and isinstance(tensor, StoredTensor):
            tensor = ScaledTensor.of(tensor, scale)
        return Decision(tensor, packed_entry(tensor.name, tensor.shape), treatment)

    def _rules_by_name(self) -> dict[str, Rule]:
        """Return the first rule that matches each tensor; refuse a rule that does nothing."""
        found: dict[str, Rule] = {}
        for number, rule in enumerate(self._wishes.rules, 1):
            for pattern in rule.patterns:
                self._check_matches(f"rule {number}: pattern", pattern)
            names = [name for name in self._model.tensors if rule.matches(name)]
            new = [name for name in names if name not in found]
            if not new:
                raise ModelFileError(
                    f"{self._model.path}: rule {number}: pattern {rule.patterns[0]!r} matches "
                    "only tensors that an earlier rule matches"
                )
            found |= dict.fromkeys(new, rule)
        return found

    def _why_not_packable(self, tensor: Tensor) -> str:
        """Return what keeps a tensor from being packed, or nothing."""
        is_scaled = tensor.name in self._scales
        if tensor.name in self._scale_names:
            return "scale of an 8-bit float"
        if tensor.dtype in FLOAT8 and not is_scaled:
            return "8-bit float without scale"
        if tensor.dtype not in FLOATING and not is_scaled:
            return "not floating"
        if len(tensor.shape) < 2:
            return "fewer than 2 dimensions"
        if tensor.shape[-1] % GROUP_SIZE:
            # a reader strides whole groups a row, so the size being a multiple is not enough
            return f"last dimension no multiple of {GROUP_SIZE}"
        if tensor.size == 0:
            return "empty"
        return ""

    def _why_not_chosen(self, name: str, rule: Rule | None) -> str:
        """Return which of the user's wishes keeps a tensor from being packed, or nothing."""
        if self._wishes.include and not matches(name, self._wishes.include):
            return "not included"
        if matches(name, self._wishes.exclude):
            return "excluded"
        if rule is not None and rule.keep is not None:
            return "kept by a rule"
        return ""

    def _check_patterns(self) -> None:
        """Refuse a pattern that does nothing: most likely it is misspelled."""
        for pattern in self._wishes.include:
            matching = self._check_matches("include", pattern)
            reasons = [self._why_not_packable(tensor) for tensor in matching]
            if all(reasons):
                raise ModelFileError(
                    f"{self._model.path}: include {pattern!r} matches no tensor that can be "
                    f"quantized ({matching[0].name!r}: {reasons[0]})"
                )
        for pattern in self._wishes.exclude:
            self._check_matches("exclude", pattern)

    def _check_matches(self, what: str, pattern: str) -> list[Tensor]:
        """Return the tensors that a pattern matches; there must be one."""
        tensors = self._model.tensors
        matching = [tensors[name] for name in tensors if matches(name, [pattern])]
        if not matching:
            raise ModelFileError(
                f"{self._model.path}: {what} {pattern!r} matches no tensor"
                f"{near_misses(pattern, tensors)}"
            )
        return matching


def _kept_entry(tensor: Tensor, cast_to: str | None) -> Entry:
    """Return the entry of a tensor that is not packed."""
    if isinstance(tensor, StoredTensor) and (cast_to is None or tensor.dtype not in FLOATING):
        return tensor.entry
    return plain_entry(tensor.name, cast_to or tensor.dtype, tensor.shape)


class ImportanceFiles:
    """The importance files of a run, each opened once."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.opened: dict[str, ImportanceFile] = {}
        wanted: dict[str, dict[str, tuple[int, ...]]] = {}
        for decision in decisions:
            path = decision.treatment.importance if decision.treatment else None
            if path is not None:
                wanted.setdefault(path, {})[decision.tensor.name] = decision.tensor.shape
        for path, shapes in wanted.items():
            self.opened[path] = ImportanceFile(path, shapes)
        self._wanted = wanted

    def of(self, decision: Decision) -> Importance | None:
        """Return the importance of a tensor that is packed, or None."""
        path = decision.treatment.importance if decision.treatment else None
        return None if path is None else self.opened[path].of(decision.tensor)

    def unused(self) -> tuple[str, ...]:
        """Return the tensors that importance is given for and that are not packed."""
        found = {
            name: None
            for path, file in self.opened.items()
            for name in file.unused(self._wanted[path])
        }
        return tuple(found)

    def missing(self) -> tuple[str, ...]:
        """Return the packed tensors for which their importance file has no entry."""
        return tuple(
            name for path, file in self.opened.items() for name in file.missing(self._wanted[path])
        )

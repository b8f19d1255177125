"""What stands between a folder and nonsense: the engine checks almost nothing itself.

Everything here is found before the first byte of the output is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import ModelFileError, tensor_error
from q43nl_numba.export.architectures import Architecture
from q43nl_numba.export.config import JsonFile
from q43nl_numba.export.dimensions import Dimensions
from q43nl_numba.export.folder import ModelFolder, StoredTensor
from q43nl_numba.export.metadata import is_gelu_with_erf, rope_scaling
from q43nl_numba.export.tensors import EngineTensor

OUTPUT = "lm_head.weight"
_MOST_NAMES = 5


def check_config(
    config: JsonFile, architecture: Architecture, *, allow_rope_scaling: bool
) -> Iterator[str]:
    """Refuse what the engine cannot compute; yield notes about what it computes otherwise.

    Raises
    ------
    ModelFileError
        If a key asks for what the engine does not do.
    """
    architecture.check(config)
    key, kind = rope_scaling(config)
    if key:
        if not allow_rope_scaling:
            raise ModelFileError(
                f"{config.path}: key {key!r} must be absent or of the kind 'default', found "
                f"{kind!r}: the engine has no RoPE scaling, so its answers are not the model's "
                "(allow_rope_scaling exports all the same)"
            )
        yield (
            f"{key} of {config.path} is {kind!r}, which the engine ignores: "
            "its logits are NOT the model's"
        )
    if is_gelu_with_erf(config, architecture):
        yield "hidden_act is 'gelu', for which the engine computes the tanh form"


def resolve_tensors(
    folder: ModelFolder, architecture: Architecture, dims: Dimensions
) -> tuple[tuple[EngineTensor, StoredTensor], ...]:
    """Find every tensor of the engine in the folder, and every tensor of the folder a use.

    Raises
    ------
    ModelFileError
        If a tensor is missing, is left over, has another shape than the configuration says, or
        holds no floating numbers.
    """
    found: list[tuple[EngineTensor, StoredTensor]] = []
    missing: dict[str, None] = {}  # in order, once: a fused source has several tensors
    for tensor in architecture.tensors(dims):
        needed = _is_needed(folder.config, architecture, tensor)
        stored = folder.tensors.get(tensor.source)
        if needed is False:
            continue
        if stored is not None:
            _check_stored(tensor, stored)
            found.append((tensor, stored))
        elif needed:
            missing[tensor.source] = None
    _check_none_missing(folder, list(missing))
    _check_none_left(folder, {tensor.source for tensor, _ in found})
    return tuple(found)


def check_patterns(
    folder: ModelFolder,
    tensors: Iterable[EngineTensor],
    include: Sequence[str],
    exclude: Sequence[str],
) -> None:
    """Refuse a choice that would leave a matrix out of the one format that a file has.

    Patterns are those of the folder's names or of the engine's.

    Raises
    ------
    ModelFileError
        If a pattern matches no tensor, or the choice leaves a matrix out.
    """
    listed = tuple(tensors)
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(tensor, (pattern,)) for tensor in listed):
                raise ModelFileError(f"{folder.path}: {option} {pattern!r} matches no tensor")
    for tensor in listed:
        chosen = not include or _matches(tensor, include)
        if tensor.is_matrix and (not chosen or _matches(tensor, exclude)):
            raise ModelFileError(
                f"{folder.path}: tensor {tensor.source!r} must be in the format of all the other "
                "matrices, found it excluded: the engine reads one dtype from the metadata"
            )


def _is_needed(config: JsonFile, architecture: Architecture, tensor: EngineTensor) -> bool | None:
    """Tell whether a folder must have a tensor's source (True) or must not use it (False).

    None: it is used if it is there. An output beside ``tie_word_embeddings`` is not used, nor are
    biases that the configuration does not announce.
    """
    if tensor.source == OUTPUT:
        tied = config.get("tie_word_embeddings")
        return None if tied is None else not config.flag("tie_word_embeddings")
    if tensor.optional:
        return architecture.has_biases(config)
    return True


def _matches(tensor: EngineTensor, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(name, pattern) for name in (tensor.source, tensor.name) for pattern in patterns
    )


def _check_stored(tensor: EngineTensor, stored: StoredTensor) -> None:
    if stored.entry.shape != tensor.source_shape:
        raise tensor_error(
            stored.path, tensor.source,
            f"its shape must be {list(tensor.source_shape)} as the configuration says, "
            f"found {list(stored.entry.shape)}",
        )  # fmt: skip
    if stored.entry.dtype not in FLOATING or stored.entry.qtype is not None:
        found = stored.entry.qtype or stored.entry.dtype
        raise tensor_error(
            stored.path,
            tensor.source,
            f"its dtype must be one of {', '.join(FLOATING)}, found {found}",
        )


def _check_none_missing(folder: ModelFolder, missing: Sequence[str]) -> None:
    if missing:
        raise ModelFileError(
            f"{folder.path}: the model must have {len(missing)} more tensors, "
            f"found no {_names(missing)}"
        )


def _check_none_left(folder: ModelFolder, used: set[str]) -> None:
    """Refuse tensors that would be dropped; of biases only those that are not zero."""
    left = []
    output_is_tied = folder.config.flag("tie_word_embeddings")
    for name, stored in folder.tensors.items():
        computed = name.endswith(".rotary_emb.inv_freq")
        tied = name == OUTPUT and output_is_tied
        if name in used or computed or tied:
            continue
        if name.endswith(".bias") and _is_zero(stored):
            continue
        left.append(name)
    if left:
        first = folder.tensors[left[0]]
        raise ModelFileError(
            f"{first.path}: the model must have no other tensors than the engine has a place for, "
            f"found {_names(left)}"
        )


def _is_zero(stored: StoredTensor) -> bool:
    if stored.entry.dtype not in FLOATING:
        return False
    return not any(np.any(part) for part in stored.rows_of(0, stored.entry.shape[0]))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown

"""What stands between a folder and nonsense: the engine checks almost nothing itself.

Everything here is found before the first byte of the output is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .._text import count_text
from ..convert.dtypes import FLOATING
from ..convert.errors import ModelFileError
from ..convert.json_file import JsonFile
from ..convert.plan import Decision
from ..convert.tensors import Tensor
from .architectures import Architecture
from .dimensions import Dimensions
from .metadata import is_gelu_with_erf, rope_scaling
from .tensors import EngineTensor

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
    path: str,
    decisions: Mapping[str, Decision],
    config: JsonFile,
    architecture: Architecture,
    dims: Dimensions,
) -> tuple[tuple[EngineTensor, Decision], ...]:
    """Find every tensor of the engine in the folder, and every tensor of the folder a use.

    Raises
    ------
    ModelFileError
        If a tensor is missing, is left over, has another shape than the configuration says, holds
        no floating numbers, or is a matrix that the caller does not want in the file's format.
    """
    found: list[tuple[EngineTensor, Decision]] = []
    missing: dict[str, None] = {}  # in order, once: a fused source has several tensors
    for tensor in architecture.tensors(dims):
        needed = _is_needed(config, architecture, tensor)
        decision = decisions.get(tensor.source)
        if needed is False:
            continue
        if decision is not None:
            _check_source(tensor, decision)
            found.append((tensor, decision))
        elif needed:
            missing[tensor.source] = None
    _check_none_missing(path, list(missing))
    used = {tensor.source for tensor, _ in found}
    if config.flag("tie_word_embeddings"):
        used.add(OUTPUT)
    _check_none_left([decision.tensor for name, decision in decisions.items() if name not in used])
    return tuple(found)


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


def _check_source(tensor: EngineTensor, decision: Decision) -> None:
    """Check that a tensor of the folder is what the configuration says, and is to be written."""
    source = decision.tensor
    if source.shape != tensor.source_shape:
        raise source.error(
            f"its shape must be {list(tensor.source_shape)} as the configuration says, "
            f"found {list(source.shape)}"
        )
    if source.dtype not in FLOATING:
        raise source.error(f"its dtype must be one of {', '.join(FLOATING)}, found {source.dtype}")
    if tensor.is_matrix and decision.treatment is None:
        raise source.error(
            f"must be in the format of all other matrices, found it {decision.reason}: the engine "
            "reads one dtype from the metadata"
        )


def _check_none_missing(path: str, missing: Sequence[str]) -> None:
    """Refuse a folder without some tensors."""
    if missing:
        raise ModelFileError(
            f"{path}: the model must have {count_text(len(missing), 'more tensor')}, found no "
            f"{_names(missing)}"
        )


def _check_none_left(unused: Sequence[Tensor]) -> None:
    """Refuse tensors that would be dropped; of biases only those that are not zero."""
    left = [tensor for tensor in unused if not _is_droppable(tensor)]
    if left:
        raise ModelFileError(
            f"{left[0].files[0].path}: the model must have no other tensors than the engine has a "
            f"place for, found {_names([tensor.name for tensor in left])}"
        )


def _is_droppable(tensor: Tensor) -> bool:
    """Tell whether the model computes the same without a tensor."""
    if tensor.name.endswith(".rotary_emb.inv_freq"):
        return True
    is_bias = tensor.name.endswith(".bias") and tensor.dtype in FLOATING
    return is_bias and not np.any(tensor.whole())


def _names(names: Sequence[str]) -> str:
    """Return the first of some names, and the number of the others."""
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown

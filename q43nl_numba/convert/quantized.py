"""Recognize checkpoints that are quantized already.

8-bit floats with scales are weights that can be computed exactly: value x scale. Other formats
would need their own decoders, and packing their scales would damage the model without a sign, so
they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .blocks import block_shape
from .dtypes import FLOAT8, FLOATING
from .tensors import StoredTensor, Tensor

#: What the name of an 8-bit float tensor is followed by in the name of its scale, which is
#: multiplied with in every case: DeepSeek calls the multiplier an inverse.
_SCALE_SUFFIXES: Final = ("_scale_inv", "_scale")
_SCALE_OF_WEIGHT: Final = "scale_weight"  # beside `weight`, in files of image models
_SCALE_DTYPES: Final = (*FLOATING, "F8_E8M0")

#: The dtypes in which other formats keep their codes.
_CODE_DTYPES: Final = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "F4", "F6_E2M3", "F6_E3M2")

Tensors = Mapping[str, Tensor]


def find_scales(tensors: Tensors) -> dict[str, StoredTensor]:
    """Return the scale of each 8-bit float tensor that has one, by the tensor's name.

    Raises
    ------
    ModelFileError
        If the tensors are quantized in another format, a scale does not fit its tensor, or its
        tensor is not there.
    """
    check_not_quantized(tensors)
    scales: dict[str, StoredTensor] = {}
    for tensor in tensors.values():
        scale = _scale_of(tensor, tensors) if tensor.dtype in FLOAT8 else None
        if isinstance(scale, StoredTensor):
            _check_scale(tensor, scale)
            scales[tensor.name] = scale
    _check_orphans(tensors, scales)
    return scales


def check_not_quantized(tensors: Tensors) -> None:
    """Refuse a file with tensors of a format that would have to be decoded first."""
    for tensor in tensors.values():
        found = _foreign_format(tensor, tensors)
        if found:
            raise tensor.error(
                f"is quantized already ({found}), expected floating weights; "
                "convert the model that it was made from"
            )


def _scale_of(weights: Tensor, tensors: Tensors) -> Tensor | None:
    """Return the scale of an 8-bit float tensor, or None."""
    names = [weights.name + suffix for suffix in _SCALE_SUFFIXES]
    base, dot, last = weights.name.rpartition(".")
    if last == "weight":
        names.append(base + dot + _SCALE_OF_WEIGHT)
    return next((tensors[name] for name in names if name in tensors), None)


def _check_scale(weights: Tensor, scale: Tensor) -> None:
    """Check that a scale can be multiplied with its tensor."""
    fits = len(weights.shape) > 0 and block_shape(scale.shape, weights.shape) is not None
    if scale.dtype not in _SCALE_DTYPES or not fits:
        raise scale.error(
            f"is {scale.dtype} {list(scale.shape)}, expected a floating scale for each block of "
            f"{weights.name!r} {list(weights.shape)}"
        )


def _check_orphans(tensors: Tensors, scales: Mapping[str, Tensor]) -> None:
    """Refuse a scale of 8-bit floats that are not in the same model."""
    paired = {scale.name for scale in scales.values()}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv") and name not in paired:
            raise tensor.error(
                "is the scale of 8-bit floats, found none under "
                f"{name.removesuffix('_scale_inv')!r}; convert the whole model"
            )


def _foreign_format(tensor: Tensor, tensors: Tensors) -> str:
    """Return the name of another format that a tensor belongs to, or nothing."""
    base, dot, last = tensor.name.rpartition(".")
    by_name = _BY_LAST_NAME.get(last)
    if by_name is not None:
        return by_name(tensor, lambda sibling: tensors.get(base + dot + sibling))
    if last.startswith("quant_state.bitsandbytes") or "quant_state" in tensor.name:
        return "bitsandbytes"
    if (
        tensor.name.endswith("_blocks")
        and tensor.name.removesuffix("_blocks") + "_scales" in tensors
    ):
        return "MXFP4"
    if tensor.dtype in _CODE_DTYPES and _has_scale(tensor.name, tensors):
        return f"{tensor.dtype} with scales"
    return ""


_Sibling = Callable[[str], Tensor | None]


def _of_qweight(tensor: Tensor, sibling: _Sibling) -> str:
    """Tell GPTQ from AWQ: the one packs the rows of a matrix, the other its columns."""
    scales = sibling("scales")
    if scales is None:
        return ""
    if sibling("g_idx") is not None:
        return "GPTQ"
    same_columns = tensor.shape[-1:] == scales.shape[-1:]
    return "GPTQ" if same_columns else "AWQ"


def _of_weight(tensor: Tensor, sibling: _Sibling) -> str:
    """Return the format of a matrix that keeps its ordinary name."""
    if sibling("weight_scale_2") is not None:
        return "NVFP4"
    if sibling("SCB") is not None or sibling("weight.absmax") is not None:
        return "bitsandbytes"
    if tensor.dtype == "U32" and sibling("scales") is not None:
        return "MLX"
    beside = ("weight_scale", "weight_scale_inv", "weight_scales", "scales", "scale")
    if tensor.dtype in _CODE_DTYPES and any(sibling(name) is not None for name in beside):
        return f"{tensor.dtype} with scales"
    return ""


def _if_beside(name: str, *siblings: str) -> Callable[[Tensor, _Sibling], str]:
    """Return a rule that names a format where all of these tensors stand beside the tensor."""
    return lambda _, sibling: (
        name if all(sibling(beside) is not None for beside in siblings) else ""
    )


#: By the last part of a tensor's name, what decides whether it belongs to another format.
_BY_LAST_NAME: Final[dict[str, Callable[[Tensor, _Sibling], str]]] = {
    "qweight": _of_qweight,
    "weight": _of_weight,
    "weight_packed": _if_beside("compressed-tensors", "weight_scale"),
    "absmax": _if_beside("bitsandbytes", "quant_map"),
    "SCB": _if_beside("bitsandbytes"),
    "W_q": _if_beside("HQQ"),
    "_data": _if_beside("quanto", "_scale"),
    "q_weight": _if_beside("EXL2", "q_scale"),
    "trellis": _if_beside("EXL3", "suh"),
    "codebooks": _if_beside("AQLM", "codes"),
}


def _has_scale(name: str, tensors: Tensors) -> bool:
    """Tell whether a tensor's name with a usual suffix is that of a scale."""
    return any(name + suffix in tensors for suffix in (*_SCALE_SUFFIXES, "_scales"))

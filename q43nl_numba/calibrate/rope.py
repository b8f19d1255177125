"""Rotary position embedding (RoPE, Su et al. 2021) and its scalings for longer contexts.

The formulas are those of Hugging Face transformers (``modeling_rope_utils.py``), whose folders are
read here. Each scaling is a function from the configuration to inverse frequencies, radians per
position, and to the factor that cosines and sines are multiplied with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import ModelConfig
from .errors import CalibrationError

Floats = npt.NDArray[np.float32]
_Frequencies = tuple[npt.NDArray[np.float64], float]


def rotation(config: ModelConfig, length: int) -> tuple[Floats, Floats]:
    """Return cosines and sines of all positions, float32 ``[length, rotary_dim / 2]``.

    Raises
    ------
    CalibrationError
        If the scaling is not known, or lacks a parameter.
    """
    scaling = SCALINGS.get(config.rope.kind)
    if scaling is None:
        raise CalibrationError(
            f"rope scaling must be one of {', '.join(SCALINGS)}, found {config.rope.kind!r:.80}"
        )
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused below
            frequencies, factor = scaling(config, length)
    except KeyError as error:
        raise CalibrationError(
            f"rope scaling {config.rope.kind!r} must have the parameter {error}, found none"
        ) from error
    except (ArithmeticError, TypeError, ValueError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise _not_finite(config, str(error)) from error
    if np.iscomplexobj(frequencies) or not np.isfinite([*frequencies, factor]).all():
        raise _not_finite(config, "others")
    angles = np.outer(np.arange(length), frequencies)
    return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(
        np.float32
    )


def _not_finite(config: ModelConfig, found: str) -> CalibrationError:
    """Return the error about a scaling whose parameters are no numbers, or impossible ones."""
    return CalibrationError(
        f"rope scaling {config.rope.kind!r} must have parameters that give finite frequencies, "
        f"found {found}"
    )


def rotate(heads: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Rotate pairs (i, i + rotary_dim / 2) of ``[length, heads, head_dim]`` by their positions."""
    half = cosines.shape[1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    cosines, sines = cosines[:, None], sines[:, None]
    return np.concatenate(
        (first * cosines - second * sines, second * cosines + first * sines, rest), axis=-1
    )


def _inverse_frequencies(config: ModelConfig, theta: float) -> npt.NDArray[np.float64]:
    return theta ** -(np.arange(0, config.rotary_dim, 2) / config.rotary_dim)


def _default(config: ModelConfig, length: int) -> _Frequencies:
    return _inverse_frequencies(config, config.rope.theta), 1.0


def _linear(config: ModelConfig, length: int) -> _Frequencies:
    return _inverse_frequencies(config, config.rope.theta) / config.rope.parameters["factor"], 1.0


def _dynamic(config: ModelConfig, length: int) -> _Frequencies:
    """Raise the base where the text is longer than the context the model was trained with."""
    factor = config.rope.parameters["factor"]
    longest = config.max_positions
    dim = config.rotary_dim
    stretched = factor * max(length, longest) / longest - (factor - 1)
    return _inverse_frequencies(config, config.rope.theta * stretched ** (dim / (dim - 2))), 1.0


def _llama3(config: ModelConfig, length: int) -> _Frequencies:
    """Divide low frequencies by a factor, keep high ones, and interpolate between the two."""
    found = config.rope.parameters
    frequencies = _inverse_frequencies(config, config.rope.theta)
    low, high = found["low_freq_factor"], found["high_freq_factor"]
    turns = found["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / found["factor"]), 1.0


def _yarn(config: ModelConfig, length: int) -> _Frequencies:
    """YaRN (Peng et al. 2023): as `_llama3` with a linear ramp over the dimensions."""
    found = config.rope.parameters
    factor, trained = found["factor"], found["original_max_position_embeddings"]
    frequencies = _inverse_frequencies(config, config.rope.theta)

    def dimension(turns: float) -> float:
        wavelengths = math.log(trained / (turns * 2 * math.pi))
        return config.rotary_dim * wavelengths / (2 * math.log(config.rope.theta))

    low, high = dimension(found.get("beta_fast") or 32), dimension(found.get("beta_slow") or 1)
    if found.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    ramp = (np.arange(frequencies.size) - low) / (max(high - low, 0.001))
    kept = 1 - np.clip(ramp, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / factor), _yarn_attention_factor(found)


def _yarn_attention_factor(found: dict[str, Any]) -> float:
    """Return the factor of cosines and sines, by which YaRN keeps the entropy of attention."""
    given = found.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(weight: float) -> float:
        factor = found["factor"]
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if found.get("mscale") and found.get("mscale_all_dim"):
        return magnitude(found["mscale"]) / magnitude(found["mscale_all_dim"])
    return magnitude(1.0)


def _longrope(config: ModelConfig, length: int) -> _Frequencies:
    """LongRoPE (Ding et al. 2024): a divisor for every frequency, others for longer texts."""
    found = config.rope.parameters
    trained = found["original_max_position_embeddings"]
    divisors = np.array(found["long_factor" if length > trained else "short_factor"], np.float64)
    frequencies = _inverse_frequencies(config, config.rope.theta)
    if divisors.shape != frequencies.shape:
        raise CalibrationError(
            f"rope scaling 'longrope' must have {frequencies.size} factors, found {divisors.size}"
        )
    factor = found.get("attention_factor")
    if factor is None:
        stretched = found.get("factor") or config.max_positions / trained
        factor = math.sqrt(1 + math.log(stretched) / math.log(trained)) if stretched > 1 else 1.0
    return frequencies / divisors, float(factor)


#: The scalings that are known, by their name in ``config.json``.
SCALINGS: dict[str, Callable[[ModelConfig, int], _Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}

"""Targets that make up for what the stream has lost before it meets a matrix.

In the stream that is quantized, a matrix W is multiplied with inputs x' where the original model
has x. Its product is added to a residual stream r' (attention's output and down projection) where
the original has r. So what is wanted of it is W x + r - r', and of all matrices V the mean of ::

    |W x + (r - r') - V x'|^2

over the tokens is least for ::

    V = W + (W D + R) H^-1,    D = mean of (x - x') x'^T,    R = mean of (r - r') x'^T,

with H = mean of x' x'^T. V is what is quantized instead of W: its *target*. (Least squares with
inputs of both models: Li et al., "GPTAQ: Efficient finetuning-free quantization for asymmetric
calibration", 2025, arXiv:2504.02692. They do without r, which adds half as much again to what is
gained here.)

D and R of a few thousand tokens are noisy, and H^-1 makes much of the noise along directions in
which inputs hardly vary. So H is given a ridge, and of what follows only a share is taken. Measured
on SmolLM2-135M, 16,384 tokens, as the KL on speeches, a manual and code that were not among them:

===============================  ======  ======  ======
share, ridge                     speech  manual  code
===============================  ======  ======  ======
0                                0.0383  0.0365  0.0365
0.5, 0.2, without r              0.0354  0.0327  0.0340
0.2, 0.2                         0.0329  0.0316  0.0332
0.3, 0.2                         0.0320  0.0309  0.0323
0.3, 0.5                         0.0335  0.0308  0.0328
0.5, 0.2                         0.0357  0.0344  0.0358
1, 1                             0.0407  0.0395  0.0420
===============================  ======  ======  ======

From the 3,000 tokens of the built-in text, a share of 0.3 takes the mean of the three from 0.045 to
0.043.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from .forward import Floats, Stop

#: What is added to the diagonal of H, as a share of its mean.
RIDGE: Final = 0.2

#: How much of the correction is taken.
SHARE: Final = np.float32(0.3)


class Correction(NamedTuple):
    """What turns the weights of a matrix into its target."""

    inputs: Floats
    """For the inputs' drift, float32 ``[columns, columns]``."""
    residual: Floats | None
    """For the residual stream's, float32 ``[rows, columns]``."""

    def target(self, weights: Floats) -> Floats:
        """Return the target of weights, ``[rows, columns]``."""
        result: Floats = weights + weights @ self.inputs
        return result if self.residual is None else result + self.residual


class Drift:
    """Running moments of how far a stage's inputs have drifted from those of the original model."""

    def __init__(self) -> None:
        self._count = 0
        self._products: Floats | None = None

    def add(self, stream: Stop, original: Stop) -> None:
        """Add where a window stops in the quantized stream and in the original model's."""
        moved: Floats = _activations(original) - _activations(stream)
        products: Floats = moved.T @ stream.inputs
        if self._products is None:
            self._products = products
        else:
            self._products += products
        self._count += len(stream.inputs)

    def correction(self, hessian: Floats) -> Correction | None:
        """Return the correction of the weights; None where there is no drift.

        Parameters
        ----------
        hessian : float32 array ``[columns, columns]``
            Of the quantized stream's inputs.
        """
        if self._products is None or not self._products.any():
            return None
        if not (np.isfinite(hessian).all() and np.isfinite(self._products).all()):
            return None  # the quantizer says what is wrong with such inputs
        damped = hessian.copy()
        damped[np.diag_indices_from(damped)] += np.float32(RIDGE) * hessian.diagonal().mean()
        factor = cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        moments = self._products * (SHARE / np.float32(self._count))
        solved = cho_solve(factor, moments.T, check_finite=False).T
        columns = len(hessian)
        return Correction(solved[:columns], solved[columns:] if len(solved) > columns else None)


def _activations(stop: Stop) -> Floats:
    """Return the inputs, and behind them the residual stream where there is one."""
    if stop.residual is None:
        return stop.inputs
    return np.concatenate((stop.inputs, stop.residual), axis=1)

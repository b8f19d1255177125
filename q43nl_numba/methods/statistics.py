"""Statistics of groups that tell where to start a search; the quantiles are from `scipy.stats`.

Each is a moment or a quantile about zero, which a group's absmax and a curve would make predictable
if the magnitudes were spread as the levels are. Moments about zero are two means: for those,
`scipy.stats.moment` would take ten times as long and the same bits.
"""

from __future__ import annotations

import math
import threading
from typing import Final

import numpy as np

from .._arrays import read_only
from .._kernel import Kernel
from .._layout import GROUP_SIZE
from ..kernels.tile import Floats

_QUARTILES: Final = (25.0, 75.0)
STATISTICS: Final = 1 + len(_QUARTILES)

FEW: Final = 64
"""Up to so many groups, SciPy's calls would take more time than its statistics."""


_buffers: Final = threading.local()


def group_statistics(groups: Floats) -> Floats:
    """Return kurtosis and quartiles of each group.

    Parameters
    ----------
    groups : float32[n, GROUP_SIZE]

    Returns
    -------
    float32[3, n]
        Kurtosis about zero, sum w^4 / n / (sum w^2 / n)^2 (NaN for a group of zeros); first and
        third quartile of the magnitudes, as order statistics.
    """
    return _from_scipy(groups) if len(groups) > FEW else _from_kernel(groups)


def _from_scipy(groups: Floats) -> Floats:
    from scipy import stats  # takes longer to import than all the rest

    # Side by side, the groups' moments are sums of whole rows: a third of the time.
    powers = np.square(groups.T, out=_buffer("powers", groups.T.shape))
    second = powers.mean(axis=0)
    fourth = np.square(powers, out=powers).mean(axis=0)
    magnitudes = np.abs(groups, out=_buffer("magnitudes", groups.shape))
    quartiles = stats.scoreatpercentile(
        magnitudes, _QUARTILES, axis=1, interpolation_method="lower"
    )
    return np.stack([fourth / (second * second), *quartiles]).astype(np.float32, copy=False)


def _buffer(name: str, shape: tuple[int, ...]) -> Floats:
    """Return memory that the calling thread uses again.

    The system's new pages for it would take as long as the sums.
    """
    size = math.prod(shape)
    kept: Floats | None = getattr(_buffers, name, None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.float32)
        setattr(_buffers, name, kept)
    return kept[:size].reshape(shape)


def _from_kernel(groups: Floats) -> Floats:
    result = np.empty((STATISTICS, len(groups)), np.float32)
    _set_few(read_only(groups), result, num_threads=1)
    return result


def _set_statistics(groups: Floats, statistics: Floats) -> None:
    """Write what SciPy gives, bit for bit: its functions take 300 us for a single group."""
    for group in range(groups.shape[0]):
        second = fourth = np.float32(0)
        for i in range(GROUP_SIZE):
            square = groups[group, i] * groups[group, i]
            second += square
            fourth += square * square
        second /= np.float32(GROUP_SIZE)
        fourth /= np.float32(GROUP_SIZE)
        statistics[0, group] = fourth / (second * second)
        for i in range(GROUP_SIZE):
            size, rank = abs(groups[group, i]), 0
            for j in range(GROUP_SIZE):
                other = abs(groups[group, j])
                rank += other < size or (other == size and j < i)
            for row, quartile in enumerate(_QUARTILES):
                if rank == int(quartile / 100 * (GROUP_SIZE - 1)):
                    statistics[1 + row, group] = size


_set_few = Kernel(_set_statistics)

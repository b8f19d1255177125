"""Large arrays whose memory is used again once nothing refers to them.

Fresh memory costs more than what is done with it here: the system clears each page when it is
touched first. (Converting 1 GB with the ``predictor`` method took 3.6 s of system time so.)
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Less than this is left to the allocator, and so many free blocks of a size are kept.
_SMALLEST: Final = 1 << 18
_KEPT_BLOCKS: Final = 8

_free: defaultdict[int, deque[Any]] = defaultdict(lambda: deque(maxlen=_KEPT_BLOCKS))


def empty(nbytes: int) -> npt.NDArray[np.uint8]:
    """Return an array of bytes with arbitrary content.

    Its memory returns to the free blocks when the array and all views of it are gone.
    """
    if nbytes < _SMALLEST:
        return np.empty(nbytes, np.uint8)
    size = 1 << (nbytes - 1).bit_length()
    blocks = _free[size]
    try:
        block = blocks.pop()
    except IndexError:
        block = np.empty(size, np.uint8).data
    array = np.frombuffer(block, np.uint8)
    weakref.finalize(array, blocks.append, block).atexit = False
    return array[:nbytes]

"""`inspect_model`: what an engine file is, and what its tensors cost."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from q43nl_numba.convert.contents import TensorContents
from q43nl_numba.convert.report import columns, number, printable, shape_text
from q43nl_numba.export.checks import OUTPUT
from q43nl_numba.export.engine_file import EngineFile, read_engine_file, read_tokens
from q43nl_numba.convert.reading import TensorReader


@dataclass(frozen=True)
class EngineContents:
    """What an engine file holds.

    Attributes
    ----------
    path : str
        The file.
    class_name, arch : str
        The architecture, by transformers' name and by the engine's.
    """

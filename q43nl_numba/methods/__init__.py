"""The methods, by name: `method` says what one is; a new one is a file here and a row below."""

from __future__ import annotations

from .coarse_fine import COARSE_FINE
from .exact import EXACT
from .gradient import GRADIENT
from .grid import GRID
from .hybrid import HYBRID
from .method import Method, find_method, method_parameters
from .optimal import OPTIMAL
from .predictor import PREDICTOR

TABLE: dict[str, Method] = {
    method.name: method
    for method in (GRID, COARSE_FINE, GRADIENT, HYBRID, PREDICTOR, OPTIMAL, EXACT)
}

__all__ = ["TABLE", "Method", "find_method", "method_parameters"]

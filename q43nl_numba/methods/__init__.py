"""The methods, by name. A new one is a file here and a line in this table."""

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

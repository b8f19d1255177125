"""The progress bar of long work."""

from __future__ import annotations

import sys
from typing import Any

from .errors import package


def progress_bar(total: int, unit: str, *, shown: bool) -> Any:
    """Return a bar on stderr; it stays silent where stderr is no terminal."""
    return package("tqdm").tqdm(
        total=total, unit=unit, file=sys.stderr, leave=False, disable=None if shown else True
    )

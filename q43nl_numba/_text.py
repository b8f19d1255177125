"""Text for people and programs: safe for a terminal, aligned in columns, or as JSON."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def printable(text: str) -> str:
    r"""Return the text with every character escaped that could disturb a terminal or break a line.

    Control and format characters (also those that change the direction of writing) become
    backslash escapes, as in Python's string literals.

    >>> printable("layer\x1b[2J\n")
    'layer\\x1b[2J\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def display_width(text: str) -> int:
    """Return the number of terminal columns of a printable text.

    Wide characters (Unicode Standard Annex 11: W and F) take two columns, combining ones none.

    >>> display_width("abc"), display_width("模型"), display_width("e\u0301")
    (3, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_character_width(c) for c in text)


def _character_width(character: str) -> int:
    """Return the columns of one character."""
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Return the lines of a table.

    Parameters
    ----------
    titles : sequence of str
        The heading of each column.
    rows : sequence of sequences of str
        The cells, which must be printable.
    left : int, default 2
        So many columns are aligned to the left, the others (numbers) to the right.

    Examples
    --------
    >>> columns(("tensor", "shape", "bytes"), [("a", "4x64", "152")])
    ['tensor  shape  bytes', 'a       4x64     152']
    """
    table = (titles, *rows)
    widths = [max(map(display_width, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            _padded(cell, width, to_left=column < left)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]


def _padded(cell: str, width: int, *, to_left: bool) -> str:
    """Return a cell of a display width."""
    padding = " " * (width - display_width(cell))
    return cell + padding if to_left else padding + cell


def number(value: float, decimals: int = 2) -> str:
    """Return a number with fixed decimals, or a dash for NaN.

    >>> number(4.75), number(float("nan"))
    ('4.75', '-')
    """
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people write it.

    >>> shape_text((8, 4, 64)), shape_text(())
    ('8x4x64', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> count_text(1, "tensor"), count_text(2000, "tensor")
    ('1 tensor', '2,000 tensors')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document as JSON in ASCII; a number that is not finite becomes null.

    >>> print(json_text({"snr_db": float("inf")}))
    {
      "snr_db": null
    }
    """
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a copy of nested data with None for every number that JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

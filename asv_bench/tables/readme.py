"""Tables in Markdown, and the sections between markers of a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"


def markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    return "\n".join(lines)


def replace(text: str, sections: Mapping[str, str]) -> str:
    """The text with other sections between their markers.

    Raises
    ------
    ValueError
        If a section's two markers are not there once each, in their order.
    """
    for title, section in sections.items():
        begin, end = BEGIN.format(name=title), END.format(name=title)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"expected {begin} and, after it, {end}, once each")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{section}\n{end}{after}"
    return text


def update(path: Path, sections: Mapping[str, str]) -> None:
    """Replace a file's sections: all of them, or the file stays as it was."""
    text = replace(path.read_text(encoding="utf-8"), sections)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8"
    ) as new:
        new.write(text)
    shutil.copymode(path, new.name)
    os.replace(new.name, path)

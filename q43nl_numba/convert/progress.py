"""Show how far a run is: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from .._text import printable
from .errors import optional_package
from .job import Progress

_SECONDS_BETWEEN_LINES: Final = 15.0


@contextlib.contextmanager
def shown_progress(*, shown: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """Return what shows a run's progress on stderr, until the block ends."""
    if not shown:
        yield None
    elif sys.stderr is not None and sys.stderr.isatty():
        bar = _Bar()
        try:
            yield bar.show
        finally:
            bar.close()
    else:
        yield _Lines().show


class _Bar:
    """A progress bar."""

    def __init__(self) -> None:
        self._bar = optional_package("tqdm").tqdm(
            total=0, unit="B", unit_scale=True, file=sys.stderr, leave=False
        )

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        self._bar.total = progress.total
        self._bar.set_postfix_str(printable(progress.tensor), refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


class _Lines:
    """A line every few seconds; none for a short run."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def show(self, progress: Progress) -> None:
        """Print a line if it is time for one."""
        now = time.monotonic()
        if now < self._next or not progress.total or sys.stderr is None:
            return
        self._next = now + _SECONDS_BETWEEN_LINES
        share = progress.done / progress.total
        with contextlib.suppress(OSError):
            sys.stderr.write(
                f"{share:.0%} of {progress.total:,} bytes, {printable(progress.tensor)}\n"
            )
            sys.stderr.flush()

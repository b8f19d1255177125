"""Locks on open files that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that a process has open
    LOCKS_ARE_KEPT = False
else:
    LOCKS_ARE_KEPT = True


def try_lock(file: IO[Any]) -> bool:
    """Lock a file unless another process holds its lock; return whether this one has it now.

    On Windows always True: what a lock would protect from being removed cannot be removed there.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    if not LOCKS_ARE_KEPT:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked_here(file: IO[Any], path: str) -> bool:
    """Lock a new file; return False if another process removed it from its path meanwhile."""
    if not LOCKS_ARE_KEPT:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return True  # without locks nobody removes it either
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

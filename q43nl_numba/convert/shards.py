"""Distribute a model's tensors over output files, and write their index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .container import Entry
from .errors import ModelFileError
from .job import FilePlan
from .model import WEIGHTS_NAME

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip


def parse_size(size: int | str) -> int:
    """Return a number of bytes; a string may have a unit, as Hugging Face has them.

    >>> parse_size("5GB"), parse_size("1.5MiB"), parse_size(1000)
    (5000000000, 1572864, 1000)
    """
    wanted = f"max_shard_size must be a size such as '5GB', found {size!r}"
    if isinstance(size, int) and not isinstance(size, bool):
        nbytes = size
    elif isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", size.upper())
        if not match or match[2] == "I":
            raise ValueError(wanted)
        nbytes = int(float(match[1]) * _UNITS[match[2]])
    else:
        raise TypeError(wanted)
    if nbytes < 1:
        raise ValueError(wanted)
    return nbytes


def split_by_size(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Split entries, in their order, into files of at most so many bytes of data.

    A tensor that is larger by itself gets a file of its own.
    """
    files: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not files or entry.nbytes > room:
            files.append([])
            room = limit
        files[-1].append(entry)
        room -= entry.nbytes
    return files


def shard_names(count: int) -> list[str]:
    """Return the names of a model's files.

    >>> shard_names(1), shard_names(2)[1]
    (['model.safetensors'], 'model-00002-of-00002.safetensors')
    """
    if count == 1:
        return [WEIGHTS_NAME]
    if count > 99_999:
        raise ModelFileError(f"max_shard_size must give at most 99,999 files, found {count:,}")
    return [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def index_text(plans: Iterable[FilePlan], metadata: Mapping[str, Any]) -> str:
    """Return the index of several files: which one holds each tensor, and the bytes of all."""
    plans = list(plans)
    weight_map = {step.target.name: plan.name for plan in plans for step in plan.steps}
    total = sum(plan.data_bytes for plan in plans)
    content = {"metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"

"""Recognize files that are often taken for safetensors files, by their first bytes."""

from __future__ import annotations

import json
import os
from typing import Final

from .container import MAX_HEADER_BYTES

_BYTES_READ: Final = 1 << 16
_GGUF: Final = b"GGUF"

#: First bytes, and what a file that begins with them is.
_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (_GGUF, "a GGUF file"),
    (b"version https://git-lfs.github.com/spec/",
     "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)"),
    (b"PK\x03\x04", "a zip archive, most likely a PyTorch checkpoint (pickle)"),
    (b"\x80\x02", "a pickle, most likely a PyTorch checkpoint"),
    (b"\x80\x03", "a pickle, most likely a PyTorch checkpoint"),
    (b"\x80\x04", "a pickle, most likely a PyTorch checkpoint"),
    (b"\x80\x05", "a pickle, most likely a PyTorch checkpoint"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
)  # fmt: skip
_TORCH_MEMBER: Final = b"data.pkl"
_NUMPY_MEMBER: Final = b".npy"


def is_gguf(path: str) -> bool:
    """Tell whether a file begins as GGUF files do."""
    with open(path, "rb") as file:
        return file.read(len(_GGUF)) == _GGUF


def format_name(path: str) -> str:
    """Return what a file is that is no safetensors file, or nothing where it is not recognized."""
    with open(path, "rb") as file:
        start = file.read(_BYTES_READ)
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return _archive_name(start) if magic.startswith(b"PK") else name
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"{":
        return _json_name(path)
    if text[:5].lower() in (b"<html", b"<!doc"):
        return "an HTML page, most likely an error message of the server it was fetched from"
    return ""


def _archive_name(start: bytes) -> str:
    """Return what a zip archive holds, by the names of its first members."""
    if _TORCH_MEMBER in start:
        return "a PyTorch checkpoint (pickle)"
    if _NUMPY_MEMBER in start:
        return "a NumPy archive (npz)"
    return "a zip archive, most likely a PyTorch checkpoint (pickle)"


def _json_name(path: str) -> str:
    """Return what a JSON file is."""
    if os.path.getsize(path) > MAX_HEADER_BYTES:
        return "a text file"
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError, OSError):
        return "a text file"
    if isinstance(content, dict) and "weight_map" in content:
        return "the index of a model in several files; give the folder that it lies in"
    return "a JSON file"

"""Files with very many tensors: work that grows with their number and not with its square."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from model_files import gauss, info, read_raw, write_raw

from q43nl_numba.convert import ModelFileError, container, convert, inspect, record, restore

MANY = 3000


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """One matrix and many norms."""
    header: dict[str, Any] = {"w": info("F32", [1, 32], 0, 128)}
    header |= {f"norm.{i}": info("F32", [1], 128 + 4 * i, 4) for i in range(MANY)}
    return write_raw(tmp_path / "in", header, gauss((32 + MANY,)).tobytes())


def test_the_record_is_parsed_once_and_does_not_grow(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(many, tmp_path / "out", "grid")
    header = read_raw(tmp_path / "out")[0]
    assert len(header["__metadata__"]["q43nl_numba"]) < 200
    parsed = []

    def counted(text: Any, **options: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **options)

    loads = json.loads
    monkeypatch.setattr(record.json, "loads", counted)
    assert len(inspect(tmp_path / "out").tensors) == MANY + 1
    assert len(parsed) == 2  # the header, and the record in it
    restore(tmp_path / "out", tmp_path / "back")
    assert len(parsed) == 4


def test_a_key_that_is_there_twice_among_many(tmp_path: Path) -> None:
    """Counting each of the keys would take minutes here."""
    keys = [f'"tensor.{i}":0' for i in range(300_000)]
    text = "{" + ",".join([*keys, keys[-1]]) + "}"
    path = write_raw(tmp_path / "in", text.encode())
    with pytest.raises(ModelFileError, match=r"has the key 'tensor.299999' more than once"):
        inspect(path)


def test_a_header_that_readers_refuse_is_not_written(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 100_000)
    with pytest.raises(ModelFileError, match=r"out: its header must have at most 100,000 bytes"):
        convert(many, tmp_path / "out", "grid")
    assert os.listdir(tmp_path) == ["in"]


def test_the_limit_is_that_of_the_stock_reader(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for excess in (0, 1):
        length = container.MAX_HEADER_BYTES + excess
        path = write_raw(tmp_path / "in", b"{}".ljust(length))
        if excess:
            with pytest.raises(SafetensorError, match=r"(?i)header"):
                safe_open(path, framework="np")
            with pytest.raises(ModelFileError, match="must have at most 100,000,000 bytes"):
                inspect(path)
        else:
            with safe_open(path, framework="np") as file:
                assert file.keys() == []


def test_dtypes_that_differ_are_kept(tmp_path: Path) -> None:
    names = ("F32", "F16", "BF16", "F64")
    header: dict[str, Any] = {}
    at = 0
    for i in range(40):
        dtype = names[i % 4 if i % 3 else 1]
        size = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}[dtype] * 32
        header[f"w{i}"] = info(dtype, [1, 32], at, size)
        at += size
    header["looks_packed"] = info("U8", [2, 19], at, 38)
    path = write_raw(tmp_path / "in", header, bytes(at) + np.arange(38, dtype=np.uint8).tobytes())
    convert(path, tmp_path / "out", "grid")
    restore(tmp_path / "out", tmp_path / "back")
    back = read_raw(tmp_path / "back")[0]
    assert list(back) == list(header)
    assert {n: (e["dtype"], e["shape"]) for n, e in back.items()} == {
        n: (e["dtype"], e["shape"]) for n, e in header.items()
    }

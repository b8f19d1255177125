"""Fixtures of the whole suite, and how hypothesis runs in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # oracle and samples, whatever the import mode

# A kernel compiles at its first call, so the first example of a test may take seconds.
settings.register_profile(
    "q43nl",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,  # the same examples for every run of a change
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("q43nl")

# The quick selection (`pytest -m quick`): the bytes, the calls, the errors, in less than a minute.
# `.ci/run` passes it on every Python and with the oldest requirements.
QUICK = (
    "test_dequantize.py",
    "test_digests.py",
    "test_errors.py",
    "test_golden.py",
    "test_statistics.py",
    "test_inputs.py",
    "test_layout.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the quick selection, except slow ones."""
    gone = [name for name in QUICK if not (Path(__file__).parent / name).exists()]
    if gone:
        raise pytest.UsageError(f"QUICK in tests/conftest.py must name test files, found {gone}")
    for item in items:
        if item.path.name in QUICK and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.fixture(scope="session")
def other_kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache for kernels that are not those of this process: of another processor, checked.

    One for all tests: what a test compiles for a processor, the next one for it finds.
    """
    return str(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240607)


@pytest.fixture(scope="session")
def normal() -> np.ndarray:
    """1,024 groups of normal weights, read-only, so that no test can spoil it for the next."""
    weights = np.random.default_rng(7).standard_normal((1024, 32)).astype(np.float32)
    weights.flags.writeable = False
    return weights

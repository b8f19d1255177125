"""What the documents and metadata of the repository say is so."""

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import q43nl_numba
from q43nl_numba import q43nl, quality

PROJECT = Path(__file__).parent.parent
PACKAGE = Path(q43nl_numba.__file__).parent
DOCUMENTS = ("README.md", "SECURITY.md", ".github/CONTRIBUTING.md", "docs/architecture.md")
RESULTS = PROJECT / "asv_bench" / "results"


def text_of(name):
    return (PROJECT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_tests_that_a_document_names_exist(document):
    for file, name in re.findall(r"(tests/\w+\.py)::(\w+)", text_of(document)):
        assert re.search(rf"^def {name}\(", text_of(file), re.M), f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_a_document_links_to_exist(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text_of(document)):
        assert (PROJECT / document).parent.joinpath(target).exists(), target


def test_the_citation_has_the_version():
    assert f"\nversion: {q43nl_numba.__version__}\n" in text_of("CITATION.cff")


# The lowest bounds that `.ci/run lowest` installs


@pytest.fixture(scope="module")
def lowest():
    path = PROJECT / ".ci" / "lowest.py"
    spec = importlib.util.spec_from_file_location("lowest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = """
[metadata]
name = own
[options]
install_requires =
    numpy>=1.26
[options.extras_require]
one =
    dask[distributed]>=2024.5
    tomli>=2; python_version<"3.11"
two =
    own[one]
    {line}
"""


def test_lowest_bounds(lowest):
    assert lowest.constraints(SETUP.format(line="numpy>=1.26")) == [
        "dask==2024.5",
        "numpy==1.26",
        'tomli==2; python_version<"3.11"',
    ]


@pytest.mark.parametrize("line", ["numpy", "numpy<3", "numpy>=1.26,<3", "numpy>=1.27"])
def test_a_requirement_without_one_lowest_bound(lowest, line):
    with pytest.raises(ValueError, match="numpy"):
        lowest.constraints(SETUP.format(line=line))


def test_the_projects_bounds_are_all_known(lowest):
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text_of("setup.cfg"))
    pinned = " ".join(lowest.constraints(text_of("setup.cfg")))
    for requirement in config["options"]["install_requires"].split():
        assert requirement.replace(">=", "==") in pinned


# The rule of asv_bench/README.md


def test_the_recorded_history_is_bounded():
    files = list(RESULTS.rglob("*.json"))
    recorded = [path for path in files if path.name not in ("machine.json", "benchmarks.json")]
    assert len(recorded) <= 40
    assert sum(path.stat().st_size for path in files) <= 2**20


def test_the_recorded_history_was_measured_in_environments_that_asv_built():
    for path in RESULTS.glob("*/*-*.json"):
        assert json.loads(path.read_text())["env_name"].startswith("virtualenv-"), path.name
        assert (path.parent / "machine.json").exists()


# The method of CONTRIBUTING.md


def test_the_method_that_contributors_are_shown_works(tmp_path):
    """A file and a row make a method, and it is better than no curve at all."""
    package = tmp_path / "q43nl_numba"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shown = text_of(".github/CONTRIBUTING.md").split("<!-- method: begin -->")[1]
    source = re.search(r"```python\n(.*?)```", shown, re.S)[1]
    (package / "methods" / "nine.py").write_text(source)
    table = package / "methods" / "__init__.py"
    rows = table.read_text()
    assert "EXACT)" in rows
    table.write_text(
        rows.replace("EXACT)", "EXACT, nine.NINE)").replace(
            "from .method import", "from . import nine\nfrom .method import"
        )
    )
    script = """
import numpy as np
from q43nl_numba import q43nl
weights = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
print(q43nl(weights, "nine").tobytes().hex())
print(q43nl(weights, "nine", importance=np.ones(32)).tobytes().hex())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, weighted = map(bytes.fromhex, done.stdout.split())
    assert plain == weighted
    weights = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    grid = quality(weights, q43nl(weights, "grid")).mse
    assert quality(weights, np.frombuffer(plain, np.uint8)).mse < 1.1 * grid

"""Compiled kernels on disk: used again, never stale, and never fatal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_disk_faults import small_disk
from test_kernels import PACKAGE, PRELUDE, run

from q43nl_numba import _cache

# Two kernels, and the function of a method with its kernel, which take three times as long.
SCRIPT = """
packed = np.arange(9 * 19, dtype=np.uint8) % 120
print(dequantize(packed, num_threads=1).sum(), quality(weights[:9], packed, num_threads=1))
"""
METHOD = 'print(digest(["coarse_fine"], num_threads=1))'


def entries(folder):
    """The cache's files below a folder."""
    return sorted(folder.rglob("*.nbc"))


def run_with_warnings(script, **environment):
    """Output and warnings of a script that must end well."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def copy_of_the_package(folder):
    package = folder / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def no_home(folder):
    """Variables that leave no folder of the user's; a regular file stops the administrator, too."""
    blocked = folder / "file"
    blocked.write_text("not a folder")
    return {
        "XDG_CACHE_HOME": str(blocked / "home"),
        "HOME": str(blocked / "home"),
        "LOCALAPPDATA": str(blocked / "home"),
    }


def test_the_package_folder_stays_as_it_was_installed(tmp_path):
    """What is left in there hides another installation after this one is removed."""
    package = copy_of_the_package(tmp_path / "lib")
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    run(SCRIPT, package=package, NUMBA_CACHE_DIR=None, LOCALAPPDATA=None, **home)
    assert entries(package) == []
    if sys.platform.startswith("linux"):
        assert entries(tmp_path / "home")


def test_without_any_folder_kernels_are_compiled_anew(tmp_path):
    """Silently: there is nothing that the user asked for and does not get."""
    assert run(SCRIPT, NUMBA_CACHE_DIR=None, **no_home(tmp_path)) == run(SCRIPT)


def test_a_folder_that_was_asked_for_and_cannot_be_written(tmp_path):
    nowhere = no_home(tmp_path)
    asked_for = str(tmp_path / "file" / "cache")
    found, warnings = run_with_warnings(SCRIPT, NUMBA_CACHE_DIR=asked_for, **nowhere)
    assert found == run(SCRIPT)
    assert warnings.count("RuntimeWarning") == 1
    assert asked_for in warnings


def test_home_is_unset():
    assert run(SCRIPT, HOME=None) == run(SCRIPT)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache folder with entries, and what the script prints."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, run(SCRIPT, NUMBA_CACHE_DIR=str(folder))


@pytest.fixture(scope="module")
def filled_by_method(tmp_path_factory):
    """A cache folder with the entries of a method, and its digest."""
    folder = tmp_path_factory.mktemp("filled_by_method")
    return folder, run(METHOD, NUMBA_CACHE_DIR=str(folder))


def test_a_second_process_finds_what_the_first_compiled(filled_by_method):
    folder, found = filled_by_method
    first = {path: path.stat().st_mtime_ns for path in entries(folder)}
    assert first
    assert run(METHOD, NUMBA_CACHE_DIR=str(folder)) == found
    assert {path: path.stat().st_mtime_ns for path in entries(folder)} == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        pytest.param(lambda content: content[:10], marks=pytest.mark.slow),
        pytest.param(lambda content: content[:40], marks=pytest.mark.slow),
        lambda content: content[:-1],
        pytest.param(lambda content: b"garbage" * 1000, marks=pytest.mark.slow),
        lambda content: content[:5000] + b"\0\0\0\0" + content[5004:],
        pytest.param(lambda content: content[:32] + content[33:], marks=pytest.mark.slow),
    ],
    ids=["empty", "checksum cut", "payload cut", "end cut", "garbage", "code changed", "byte lost"],
)
def test_a_damaged_entry_is_replaced(tmp_path, filled, damage):
    folder, expected = filled
    cache = tmp_path / "cache"
    shutil.copytree(folder, cache)
    for path in entries(cache):
        path.write_bytes(damage(path.read_bytes()))
    found, warnings = run_with_warnings(SCRIPT, NUMBA_CACHE_DIR=str(cache))
    assert found == expected
    assert warnings.count("RuntimeWarning") == 1
    assert str(cache) in warnings
    assert run(SCRIPT, NUMBA_CACHE_DIR=str(cache)) == expected  # warnings would be errors here


def test_a_sound_entry_of_something_else_is_replaced(tmp_path, filled_by_method):
    """With a right checksum, but no compiled kernel inside."""
    import hashlib
    import pickle

    folder, expected = filled_by_method
    cache = tmp_path / "cache"
    shutil.copytree(folder, cache)
    for path in entries(cache):
        payload = pickle.dumps(("not", "a", "kernel"))
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
    found, warnings = run_with_warnings(METHOD, NUMBA_CACHE_DIR=str(cache))
    assert found == expected
    assert warnings.count("RuntimeWarning") == 1


def test_damage_at_every_length_is_noticed(tmp_path, filled):
    """Cut anywhere, or changed in any byte: an entry is used as it was written, or not at all."""
    folder, _ = filled
    content = min((path.read_bytes() for path in entries(folder)), key=len)
    lengths = {*range(200), *range(len(content) - 200, len(content))}
    lengths |= set(range(0, len(content), max(len(content) // 500, 1)))
    entry = tmp_path / "entry.nbc"
    entry.write_bytes(content)
    _cache._read(entry)
    for length in lengths:
        entry.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            _cache._read(entry)
        entry.write_bytes(content[:length] + bytes([content[length] ^ 1]) + content[length + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            _cache._read(entry)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_costs_a_warning(tmp_path):
    """As when no byte can be written any more."""
    script = f"""
import errno, os
from q43nl_numba import _cache
def full(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
_cache._write_whole = full
{SCRIPT}
"""
    found, warnings = run_with_warnings(script, NUMBA_CACHE_DIR=str(tmp_path))
    assert found == run(SCRIPT)
    assert warnings.count("RuntimeWarning") == 1
    assert "No space left" in warnings
    assert str(tmp_path) in warnings


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a small disk")
@pytest.mark.parametrize("size", [4 << 10, 64 << 10, 256 << 10])
def test_a_disk_too_small_for_the_entries(tmp_path, size):
    """Entries are on it whole or not at all, and the next process uses those."""
    disk = tmp_path / "disk"
    with small_disk(disk, size):
        found, warnings = run_with_warnings(METHOD, NUMBA_CACHE_DIR=str(disk))
        assert found == run(METHOD)
        assert warnings.count("RuntimeWarning") == 1
        assert "No space left" in warnings
        assert not list(disk.rglob("*.tmp"))
        for path in entries(disk):
            _cache._read(path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a file system")
def test_an_installation_that_cannot_be_written(tmp_path):
    """Mounted for reading only, which stops the administrator, too, and without a home."""
    package = copy_of_the_package(tmp_path / "lib")
    command = ["mount", "--bind", "-o", "ro", str(package.parent), str(package.parent)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (package / "file").touch()
        environment = {"NUMBA_CACHE_DIR": None, **no_home(tmp_path)}
        assert run(SCRIPT, package=package, **environment) == run(SCRIPT)
    finally:
        subprocess.run(["umount", str(package.parent)], check=True)


def test_an_unfinished_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        _cache._write_whole(tmp_path / "entry.nbc", b"content")
    assert list(tmp_path.iterdir()) == []


# --- stale kernels ---------------------------------------------------------------------------


def digest_of(package, monkeypatch):
    """The digest that names the cache's folder, of a copy of the package."""
    monkeypatch.setattr(_cache, "__file__", str(package / "_cache.py"))
    return _cache._build_digest.__wrapped__()


def test_every_module_that_kernels_are_made_from_counts(tmp_path, monkeypatch):
    """An edit of any of them gives kernels another name."""
    package = copy_of_the_package(tmp_path)
    modules = [
        *package.glob("_*.py"),
        *(package / "kernels").rglob("*.py"),
        *(package / "methods").rglob("*.py"),
    ]
    seen = {digest_of(package, monkeypatch)}
    for path in modules:
        path.write_text(path.read_text() + "\n")
        seen.add(digest_of(package, monkeypatch))
    assert len(seen) == 1 + len(modules)


def test_every_module_with_a_kernel_lies_where_the_digest_looks():
    """Whoever compiles imports `_jit` or `_kernel`."""
    covered = {
        path for name in _cache._KERNEL_FOLDERS for path in (PACKAGE / name).resolve().glob("*.py")
    }
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        if "_jit import" in source or "_kernel import" in source or "numba." in source:
            assert path.resolve() in covered or "numba.njit" not in source, path


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("kernels/curve.py", "slope += _NEAREST_SHIFT", "slope -= _NEAREST_SHIFT"),
        ("methods/coarse_fine.py", "_FINE_STEP: Final = 2.0", "_FINE_STEP: Final = 9.0"),
        ("_layout.py", "NIBBLE_OF_ZERO: Final = 8", "NIBBLE_OF_ZERO: Final = 7"),
    ],
)
def test_an_edit_elsewhere_than_in_the_kernel_counts(tmp_path, filled_by_method, module, old, new):
    folder, before = filled_by_method
    package = copy_of_the_package(tmp_path)
    path = package / module
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert run(METHOD, package=package, NUMBA_CACHE_DIR=str(folder)) != before


def test_another_network_size_counts(tmp_path):
    """The sizes of the predictor's network are compiled into its kernel."""
    package = copy_of_the_package(tmp_path)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    script = 'print(q43nl(weights, "predictor", num_threads=1).tobytes().hex())'
    run(script, package=package, **cache)
    network = package / "methods" / "predictor" / "network.py"
    network.write_text(network.read_text().replace("HIDDEN: Final = 16", "HIDDEN: Final = 8"))
    smaller = f"""
    import numpy as np
    from q43nl_numba.methods.predictor import network
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal(shape).astype(np.float32) for shape in network.SHAPES]
    network.write_network(layers)
    {script}
    """
    with_old_cache = run(smaller, package=package, **cache)
    assert with_old_cache == run(smaller, package=package, NUMBA_CACHE_DIR=str(tmp_path / "fresh"))


def test_an_upgrade_under_a_running_process(tmp_path):
    """What it compiles of the sources that it has read is not kept as made of the new ones."""
    package = copy_of_the_package(tmp_path)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    old, new = "_FINE_STEP: Final = 2.0", "_FINE_STEP: Final = 9.0"
    script = f"""
    from pathlib import Path
    path = Path({str(package / "methods" / "coarse_fine.py")!r})
    path.write_text(path.read_text().replace({old!r}, {new!r}))
    print(digest(["coarse_fine"], num_threads=1))
    """
    before = run(script, package=package, **cache)
    assert before == run(METHOD)
    assert run(METHOD, package=package, **cache) != before


def test_old_builds_are_removed(tmp_path):
    for number in range(9):
        folder = tmp_path / f"build{number}"
        folder.mkdir()
        (folder / "kernel.nbc").write_bytes(b"")
        os.utime(folder, (number, number))
    _cache._remove_old_builds(tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"build{number}" for number in range(9 - _cache._KEPT_BUILDS, 9)]


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_compile_at_once(tmp_path, count):
    """All of them end with the same bytes, and what they leave is sound."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE.parent),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + SCRIPT],
            env=environment,
            cwd=PACKAGE.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    found = {process.communicate(timeout=3000)[0].strip() for process in processes}
    assert found == {run(SCRIPT)}
    assert run(SCRIPT, NUMBA_CACHE_DIR=str(tmp_path)) in found

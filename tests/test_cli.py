"""The commands: what they print, how they end, what they leave behind.

A process costs a second, so only what needs one runs in one; the rest calls `main`.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from q43nl_numba import (
    GROUP_DTYPE,
    METHODS,
    __version__,
    _process,
    _text,
    cli,
    dequantize,
    q43nl,
    quality,
)

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from safetensors.numpy import load_file, save_file

from q43nl_numba import convert as convert_package

COMMANDS = ("compare", "convert", "restore", "verify", "inspect")
LIMIT = 120  # seconds after which a process counts as stuck


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "q43nl_numba", *map(str, arguments)]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "timeout": LIMIT, **options}
    return subprocess.run(command(*arguments), check=False, **settings)  # type: ignore[call-overload]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    weights = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    save_file({"layer.weight": weights, "layer.bias": weights[0]}, path, {"format": "pt"})
    return path


def write_sparse_model(path: Path, weights: int) -> Path:
    """A model of zeros that takes long to convert and no room on the disk."""
    entry = {"dtype": "F32", "shape": [weights // 32, 32], "data_offsets": [0, weights * 4]}
    text = json.dumps({"zeros": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + weights * 4)
    return path


def the_error(text: str, prefix: str = "error: ") -> str:
    """The one line on stderr, without the program's name."""
    line = re.fullmatch(rf"q43nl-numba: {prefix}(.*)\n", text)
    assert line, text
    return line[1]


# Every command, as a process


def test_convert_inspect_restore(model: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "packed.safetensors", tmp_path / "back.safetensors"
    done = run("convert", model, packed, "--method", "grid", "--grid-size", "127")
    assert (done.returncode, done.stderr) == (0, "")
    titles, row, *_ = done.stdout.splitlines()
    assert titles.split()[:5] == ["tensor", "shape", "bits/weight", "SNR", "dB"]
    assert row.split()[:3] == ["layer.weight", "4x64", "4.75"]
    before = load_file(model)
    expected = q43nl(before["layer.weight"], "grid", grid_size=127)
    np.testing.assert_array_equal(load_file(packed)["layer.weight"].ravel(), expected)

    done = run("inspect", packed, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^layer\.weight +4x64 +Q43NL +152 +4\.75 .*[▁▂▃▄▅▆▇█]", done.stdout, re.M)
    assert re.search(r"^layer\.bias +64 +F32 +256 +32\.00$", done.stdout, re.M)

    done = run("restore", packed, back, "--num-threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    after = load_file(back)
    np.testing.assert_array_equal(after["layer.bias"], before["layer.bias"])
    np.testing.assert_array_equal(after["layer.weight"], dequantize(expected, (4, 64)))
    assert sorted(os.listdir(tmp_path)) == sorted([model.name, packed.name, back.name])


def test_compare(tmp_path: Path) -> None:
    done = run("compare", "--size", "3200", "--methods", "grid", "--repeat", "1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["method"], row["mse_ratio"], row["packed_bytes"]) == ("grid", 1.0, 1900)


def test_failure_and_wrong_usage_as_a_process(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (1, "")
    assert the_error(done.stderr) == f"{tmp_path / 'missing'}: No such file or directory"
    done = run("convert", "--method", "none", "in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'none'" in the_error(done.stderr)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "word"),
    [("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "terminated")],
)
def test_a_signal_during_convert_leaves_nothing(tmp_path: Path, number: str, word: str) -> None:
    source = write_sparse_model(tmp_path / "in.st", 1 << 33)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.st").write_bytes(b"old")
    with subprocess.Popen(
        command("convert", source, folder / "out.st", "--method", "grid"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    ) as process:
        try:
            wait_for_a_second_file(folder, process)
            process.send_signal(getattr(signal, number))
            _, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 128 + getattr(signal, number)
    assert errors == f"q43nl-numba: {word}\n"
    assert os.listdir(folder) == ["out.st"]
    assert (folder / "out.st").read_bytes() == b"old"


def default_signals() -> None:
    """What a shell in the foreground gives its programs, whatever runs this suite."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for_a_second_file(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the work has begun: its temporary file lies beside the old output."""
    deadline = time.monotonic() + LIMIT
    while len(os.listdir(folder)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(model: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("inspect", model, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 1
    assert the_error(done.stderr) == f"standard output: {os.strerror(errno.ENOSPC)}"


def test_a_reader_that_has_seen_enough(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run("inspect", model, stdout=pipe, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_block_characters(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "größe 模型.safetensors"
    assert cli.main(["convert", str(model), str(packed), "--method", "grid"]) == 0
    done = run("inspect", packed, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer.weight" in done.stdout
    assert "\\u" not in done.stdout


# Streams that are closed


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors in a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(model: Path, tmp_path: Path, closed: str) -> None:
    def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = f"{shlex.join(command(*arguments))} {closed}"
        return subprocess.run(line, shell=True, capture_output=True, text=True, check=False)

    packed = tmp_path / "packed"
    for arguments in (("convert", model, packed, "--method", "grid"), ("inspect", packed)):
        done = shell(*arguments)
        assert done.returncode == 0
        assert done.stderr == ""
        assert bool(done.stdout) == (closed == "2>&-")
    done = shell("inspect", tmp_path / "missing")
    assert done.returncode == 1
    assert bool(done.stderr) == (closed == ">&-")
    assert "NoneType" not in done.stderr


# Signals before the work has begun


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize(("number", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated")])
@pytest.mark.parametrize("module", ["numba", "numpy", "argparse"])
def test_a_signal_during_the_imports(tmp_path: Path, number: str, word: str, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{number})\ntime.sleep(60)\n"
    )
    done = run(
        "compare",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        preexec_fn=default_signals,
    )
    assert done.returncode == 128 + getattr(signal, number)
    assert (done.stdout, done.stderr) == ("", f"q43nl-numba: {word}\n")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_an_import_that_turns_an_interrupt_into_another_error(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise ImportError('numba is broken')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = run("compare", env={**os.environ, "PYTHONPATH": path}, preexec_fn=default_signals)
    assert (done.returncode, done.stderr) == (130, "q43nl-numba: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_an_interrupt_that_python_ignores_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text(
        "import os, signal, time\n"
        "class Dying:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        for _ in range(1000): pass\n"
        "Dying()\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = run("compare", env={**os.environ, "PYTHONPATH": path}, preexec_fn=default_signals)
    assert (done.returncode, done.stderr) == (130, "q43nl-numba: interrupted\n")


@pytest.mark.parametrize(
    ("call", "late"),
    [
        ("", "numpy numba scipy argparse typing"),
        ("main(['--help'])", "numpy numba scipy"),
        ("main(['--version'])", "numpy numba scipy"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(call: str, late: str) -> None:
    code = (
        f"import sys; from q43nl_numba.cli import main\n{call}\n"
        f"print(sorted(set({late!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


# Help, version, usage


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)])
def test_help_has_examples(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith(" ".join(["usage: q43nl-numba", *arguments]))
    assert re.search(r"^examples:\n  q43nl-numba ", shown.out, re.M)
    assert all(option in shown.out for option in ("--debug", "--version"))


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)])
def test_version(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--version"]) == 0
    assert capsys.readouterr().out == f"q43nl-numba {__version__}\n"


def test_every_option_of_every_method_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    parameters = inspect.signature(q43nl).parameters
    in_files = {"importance", "hessian"}
    for name in set(parameters) - {"tensor", "method", "out"} - in_files:
        assert f"--{name.replace('_', '-')} " in shown
        default = parameters[name].default
        assert default is None or f"(default: {default})" in shown
    assert "iterations of Adam; of the method gradient (default: 5)" in shown
    assert "of the methods optimal and exact (default: full)" in shown


def test_every_method_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "--help"]) == 0
    assert "{" + ",".join(METHODS) + "}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "required: COMMAND"),
        (("pack",), "invalid choice: 'pack'"),
        (("convert",), "required: IN, OUT"),
        (("convert", "in"), "required: OUT"),
        (("restore", "in"), "required: OUT"),
        (("inspect",), "required: MODEL"),
        (("verify", "a"), "required: CONVERTED"),
        (("verify", "a", "b", "--min-snr", "nan"), "--min-snr: must be finite"),
        (
            ("convert", "in", "out", "--max-shard-size", "5X"),
            "--max-shard-size: max_shard_size must",
        ),
        (("convert", "in", "out", "--report", "r.txt"), "--report: r.txt: a report must end in"),
        (("convert", "in", "out", "--dry-run", "--report", "r.json"), "--report: not allowed"),
        (("inspect", "in", "more"), "unrecognized arguments: more"),
        (("convert", "in", "out", "--met", "grid"), "unrecognized arguments: --met grid"),
        (("convert", "in", "out", "--keep-dtype", "int8"), "--keep-dtype: invalid choice"),
        (("convert", "in", "out", "--gd-iterations", "x"), "--gd-iterations: invalid int"),
        (("convert", "in", "out", "--gd-iterations", "0"), "gd_iterations"),
        (("convert", "in", "out", "--gd-lr", "nan"), "gd_lr"),
        (("convert", "in", "out", "--eps-scale", "-1"), "eps_scale"),
        (("convert", "in", "out", "--num-threads", "0"), "--num-threads: must be an integer"),
        (("convert", "in", "out", "--method", "grid", "--grid-size", "1"), "grid_size"),
        (("convert", "in", "out", "--method", "grid", "--gd-lr", "0.1"), "gd_lr"),
        (("convert", "in", "out", "--grid-size", "17"), "grid_size"),
        (("restore", "in", "out", "--num-threads", "0"), "--num-threads: must be an integer"),
        (("compare", "--distribution", "none"), "--distribution: invalid choice"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = the_error(shown.err)
    assert problem in message
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    assert message.endswith("(see q43nl-numba --help)") or name in message


def test_arguments_are_passed_on(model: Path, tmp_path: Path, capsys: object) -> None:
    out = tmp_path / "out"
    patterns = ("--include", "layer.*", "--include", "*.weight", "--exclude", "*.wei?ht")
    arguments = ("--method", "grid", "--eps-scale", "0.5", "--keep-dtype", "float16")
    command = ["convert", str(model), str(out), *patterns, *arguments]
    assert cli.main(command) == 1  # nothing is quantized
    assert cli.main([*command, "--allow-empty"]) == 0
    assert cli.main([*command, "--allow-empty", "--no-clobber"]) == 1
    after = load_file(out)
    assert {name: str(array.dtype) for name, array in after.items()} == {
        "layer.weight": "float16", "layer.bias": "float16"
    }  # fmt: skip
    assert cli.main(["convert", str(model), str(out), *arguments, "--eps-scale", "1e5"]) == 0
    assert not load_file(out)["layer.weight"].any()


# What is printed


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A file of 100 matrices, each a little worse than the one before, and 60 vectors."""
    path = tmp_path / "many.safetensors"
    rng = np.random.default_rng(9)
    tensors = {f"norm.{i:03}": np.ones(32, np.float32) for i in range(60)}
    for i in range(100):
        tensors[f"layer.{i:03}"] = rng.standard_normal((1, 32)).astype(np.float32)
    save_file(tensors, path)
    return path


def test_kept_tensors_and_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in"
    matrix = np.ones((2, 32), np.float32)
    save_file({"w": matrix, "head": matrix, "odd": matrix[:, :20], "ids": np.arange(3)}, path)
    arguments = ("--exclude", "head", "--keep-dtype", "float16", "--method", "grid")
    assert cli.main(["convert", str(path), f"{path}.out", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^kept tensor +shape +type +why it is not packed$", shown, re.M)
    assert re.search(r"^head +2x32 +F32 -> F16 +excluded$", shown, re.M)
    assert re.search(r"^odd +2x20 +F32 -> F16 +last dimension no multiple of 32$", shown, re.M)
    assert re.search(r"^ids +3 +I64 +not floating$", shown, re.M)


def test_importance_that_is_not_used_is_listed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "importance"
    save_file({"layer.weight": np.ones(64, np.float32), "elsewhere": np.ones(7)}, told)
    arguments = ["convert", str(model), f"{model}.out", "--importance", str(told)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "\n\nimportance not used: the tensor is not packed\nelsewhere\n\n" in shown
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unused_importance"] == ["elsewhere"]


def test_long_tables_show_the_worst(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{many}.out"
    assert cli.main(["convert", str(many), out, "--method", "grid", "--json"]) == 0
    by_snr = sorted(json.loads(capsys.readouterr().out)["packed"], key=lambda row: row["snr_db"])
    names = [row["name"] for row in by_snr]
    for whole in (False, True):
        assert cli.main(["convert", str(many), out, "--method", "grid", *["--all"] * whole]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown = 100 if whole else 40
        assert [line.split()[0] for line in lines[1 : shown + 1]] == names[:shown]
        rest = [line for line in lines if line.endswith("more (--all shows them)")]
        assert rest == ([] if whole else [f"... and {n} more (--all shows them)" for n in (60, 20)])
        assert sum(line.startswith("norm.") for line in lines) == (60 if whole else 40)
        assert cli.main(["inspect", out, *["--all"] * whole]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith(("norm.", "layer.")) for line in lines) == (160 if whole else 40)
        assert ("... and 120 more (--all shows them)" in lines) is not whole


def test_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"

    def document(*arguments: object) -> dict:
        assert cli.main([*map(str, arguments), "--json"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return json.loads(shown.out, parse_constant=pytest.fail)

    found = document("convert", model, packed, "--method", "grid")
    (row,) = found["packed"]
    weights = load_file(model)["layer.weight"]
    expected = quality(weights, q43nl(weights, "grid"))
    assert (row["name"], row["shape"], row["bytes"]) == ("layer.weight", [4, 64], 152)
    assert row["snr_db"] == pytest.approx(expected.snr_db)
    assert found["kept"] == [
        {
            "name": "layer.bias",
            "file": "packed",
            "shape": [64],
            "dtype": "F32",
            "stored_dtype": "F32",
            "reason": "fewer than 2 dimensions",
        }
    ]
    assert found["total"]["bytes_out"] == packed.stat().st_size

    found = document("inspect", packed)
    assert found["bytes"] == packed.stat().st_size
    assert found["metadata"] == {"format": "pt", "dtype": "Q43NL"}
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["layer.weight"]["shape"] == [4, 64]
    assert rows["layer.weight"]["stored_shape"] == [4, 38]
    curves = q43nl(weights, "grid").view(GROUP_DTYPE)["curve"].astype(int)
    counts = np.bincount(curves + 128, minlength=256).tolist()
    assert rows["layer.weight"]["curve_counts"] == counts
    assert "curve_counts" not in rows["layer.bias"]

    found = document("restore", packed, back)
    assert (found["unpacked"], found["tensors"]) == (1, 2)
    assert found["bytes_out"] == back.stat().st_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files with an index, as Hugging Face lays it out."""
    path = tmp_path / "model"
    path.mkdir()
    rng = np.random.default_rng(8)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weights = {f"layers.{i}.w": rng.standard_normal((8, 64)).astype(np.float32) for i in range(4)}
    for number, name in enumerate(names):
        part = {key: weights[key] for key in list(weights)[number::2]}
        save_file(
            {**part, f"norm.{number}": np.ones(64, np.float32)}, path / name, {"format": "pt"}
        )
    places = {key: names[i % 2] for i, key in enumerate(weights)}
    places |= {f"norm.{number}": name for number, name in enumerate(names)}
    index = {"metadata": {"total_size": 4 * 2048 + 512}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\npattern = "*.0.*"\nkeep = true\n'
        '[[rule]]\npattern = "layers.1.w"\nmethod = "optimal"\neffort = 1\n'
    )
    out = tmp_path / "out"
    command = ["convert", str(folder), str(out), "--method", "grid", "--rules", str(rules)]
    assert cli.main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert cli.main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.exists()
    assert re.search(r"^layers\.0\.w +8x64 +F32 +F32 +2,048 +32\.00 +\S", shown, re.M)
    assert re.search(r"^layers\.1\.w +8x64 +F32 +Q43NL optimal effort=1 +304 +4\.75$", shown, re.M)
    assert re.search(r"^layers\.2\.w +8x64 +F32 +Q43NL grid +304 +4\.75$", shown, re.M)
    assert "nothing was written" in shown.splitlines()[-1]

    assert cli.main(command) == 0
    sizes = {file["name"]: file["bytes"] for file in plan["files"]}
    assert len(sizes) >= 2
    for name, nbytes in sizes.items():
        assert (out / name).stat().st_size == nbytes, name
    assert sum(sizes.values()) == plan["total"]["bytes_out"]
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    stored = load_file(out / "model-00001-of-00002.safetensors")
    planned = {row["name"]: row for row in plan["tensors"]}
    assert all(planned[name]["bytes"] == array.nbytes for name, array in stored.items())


def test_reports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    paths = [tmp_path / "r.json", out / "inside.json", out / "r.html"]
    options = [part for path in paths for part in ("--report", str(path))]
    assert cli.main(["convert", str(folder), str(out), "--method", "grid", "--json", *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    document = json.loads(paths[0].read_text(), parse_constant=pytest.fail)
    assert document == json.loads(paths[1].read_text())
    for row, full in zip(printed["packed"], document["packed"], strict=True):
        sample = full.pop("sample")
        assert row == full
        assert sum(sample["curve_counts"]) == sample["groups"] == 16
        assert sum(sample["code_counts"]) == sum(sample["weights_before"]) == 512
        assert row["mse_ratio"] == pytest.approx(1)
    page = paths[2].read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f'<dd id="snr">{printed["total"]["snr_db"]:.2f} dB' in page


def test_reports_that_cannot_be_written_are_refused_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, problem in [
        (tmp_path / "no" / "r.json", f"there is no folder {tmp_path / 'no'}"),
        (tmp_path / "r.html", "is a folder, expected a file name"),
    ]:
        (tmp_path / "r.html").mkdir(exist_ok=True)
        message = failing(capsys, "convert", model, tmp_path / "out", "--report", path)
        assert message == f"{path}: {problem}"
        assert not (tmp_path / "out").exists()


def test_a_scheduler_that_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    arguments = ("convert", folder, tmp_path / "out", "--scheduler", "nonsense://127.0.0.1:1")
    message = failing(capsys, *arguments)
    assert message.startswith("there is no Dask scheduler at nonsense://127.0.0.1:1")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "."])
def test_a_report_never_replaces_the_output(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["convert", str(folder), str(out), "--report", str(out / name)]
    assert cli.main(arguments) == 2
    problem = "is the output" if name == "." else "is a file of the model"
    assert problem in the_error(capsys.readouterr().err)
    assert not out.exists()


def test_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone.safetensors"
    assert cli.main(["convert", str(folder), str(out), "--method", "grid", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cli.main(["convert", str(folder), str(alone), "--method", "grid", "--single-file"]) == 0
    capsys.readouterr()
    for converted in (out, alone):
        assert cli.main(["verify", str(folder), str(converted), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        by_name = {row["name"]: row for row in found["packed"]}
        for row in report["packed"]:
            for key in ("snr_db", "mse_ratio", "max_abs_error", "bytes"):
                assert by_name[row["name"]][key] == pytest.approx(row[key], rel=1e-6), key
        assert sorted(found["equal"]) == ["norm.0", "norm.1"]
        assert found["below_min_snr"] == []

    worst = min(row["snr_db"] for row in report["packed"])
    assert cli.main(["verify", str(folder), str(out), "--min-snr", f"{worst - 0.01}"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[0].split()[:2] == ["tensor", "shape"]
    assert cli.main(["verify", str(folder), str(out), "--min-snr", f"{worst + 0.001}"]) == 1
    assert "1 tensor below" in the_error(capsys.readouterr().err)


def test_verify_of_another_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(model), f"{model}.out", "--method", "grid"]) == 0
    tensors = load_file(model)
    save_file({**tensors, "layer.bias": tensors["layer.bias"] + 1}, tmp_path / "other")
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "other"), f"{model}.out"]) == 1
    shown = capsys.readouterr()
    assert "tensors that are not packed: 1 different, 0 missing, 0 added" in the_error(shown.err)
    assert "different values\nlayer.bias\n" in shown.out


def test_inspect_and_restore_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    assert cli.main(["convert", str(folder), str(out), "--method", "grid"]) == 0
    assert cli.main(["inspect", str(out)]) == 0
    assert "6 tensors, 4 packed" in capsys.readouterr().out
    assert cli.main(["restore", str(out), str(back)]) == 0
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        before, after = load_file(folder / name), load_file(back / name)
        assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
            k: (v.shape, v.dtype) for k, v in after.items()
        }


def test_an_interrupted_run_says_how_to_go_on(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    command = ["convert", str(folder), str(out), "--method", "grid", "--resume"]
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    stamps = second.stat().st_atime_ns, second.stat().st_mtime_ns
    second.write_bytes(whole[:-600] + np.full(150, np.nan, np.float32).tobytes())
    os.utime(second, ns=stamps)
    assert cli.main(command) == 1
    first, error = capsys.readouterr().err.splitlines()
    assert first == "q43nl-numba: 1 of 2 files are done; --resume continues"
    assert "cannot be quantized" in error
    assert not out.exists()
    second.write_bytes(whole)
    os.utime(second, ns=stamps)
    assert cli.main(command) == 0
    assert cli.main(["verify", str(folder), str(out)]) == 0


def test_json_has_no_infinity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": np.ones((2, 32), np.float32)}, tmp_path / "in")
    arguments = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]
    assert cli.main(arguments) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["packed"][0]["snr_db"] is None


def test_columns_of_wide_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("plain", "模型.权重", "e\u0301tage", "層.ウェイト.1")
    save_file({name: np.ones((2, 32), np.float32) for name in names}, tmp_path / "in")
    assert cli.main(["inspect", str(tmp_path / "in")]) == 0
    _, *rows = capsys.readouterr().out.splitlines()[:5]
    ends = {_text.display_width(row[: row.index("2x32")]) for row in rows}
    assert ends == {len("層.ウェイト.1") + 5 + 2}  # five of its characters take two columns


BAD = "\x1b[2J\r\n\u202e"


def test_control_characters_never_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"folder{BAD}"
    folder.mkdir()
    model, packed = folder / "in", folder / "out"
    weights = np.random.default_rng(4).standard_normal((2, 32)).astype(np.float32)
    save_file({f"w{BAD}": weights, f"b{BAD}": weights[0]}, model, {f"k{BAD}": f"v{BAD}"})
    np.save(folder / "w.npy", weights)
    for arguments in (
        ("convert", model, packed, "--method", "grid"),
        ("inspect", packed),
        ("restore", packed, folder / "back"),
        ("compare", model, "--methods", "grid", "--repeat", "1"),
        ("compare", folder / "w.npy", "--methods", "grid", "--repeat", "1"),
        ("convert", model, packed, f"--{BAD}"),
        ("convert", model, packed, "--exclude", BAD),
        ("convert", model, folder / "none" / "out"),
        ("compare", "--methods", BAD),
        ("compare", folder / "none"),
        ("inspect", folder),
        ("inspect", folder / "none", "--debug"),
        (f"pack{BAD}",),
    ):
        cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        text = shown.out + shown.err
        assert text
        assert not set(text) & set(BAD) - set("\n[2J"), arguments
        if shown.err and "--debug" not in arguments:
            the_error(shown.err)


# Work that fails


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run what fails; return the one line it says."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    return the_error(shown.err)


@pytest.mark.parametrize("name", ["convert", "restore", "inspect"])
def test_inputs_that_cannot_be_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = () if name == "inspect" else (tmp_path / "out",)
    (tmp_path / "cut").write_bytes(b"\0" * 5)
    for path, problem in [
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / "cut" / "below", "Not a directory"),
        (tmp_path, "must be a folder with safetensors files, found no file of weights"),
        (tmp_path / "cut", "is too short for a safetensors file: 5 bytes"),
    ]:
        assert failing(capsys, name, path, *out) == f"{path}: {problem}"
    assert os.listdir(tmp_path) == ["cut"]


def test_outputs_that_cannot_be_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, problem in [
        (model, f"the output is the input file {model}"),
        (tmp_path, "is a folder, expected a file name"),
        (tmp_path / "no" / "out", f"there is no folder {tmp_path / 'no'}"),
        (model / "out", f"there is no folder {model}"),
    ]:
        assert failing(capsys, "convert", model, out) == f"{out}: {problem}"
    assert os.listdir(tmp_path) == [model.name]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that root cannot fill")
def test_a_folder_that_cannot_be_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failing(capsys, "convert", model, "/proc/self/out", "--method", "grid")
    assert message.startswith("/proc/")
    assert message.count(": ") == 1


def test_a_disk_that_becomes_full(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    message = failing(capsys, "convert", model, out, "--method", "grid")
    assert message == f"{out}: No space left on device"
    assert os.listdir(tmp_path) == [model.name]


def test_the_tensor_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.st"
    save_file({"lay\ner": np.full((2, 32), np.nan, np.float32)}, path)
    message = failing(capsys, "convert", path, tmp_path / "out", "--method", "grid")
    assert message.startswith(f"{path}: tensor 'lay\\ner': 64 of its 64 values cannot")
    assert os.listdir(tmp_path) == ["in.st"]


def test_an_error_that_is_not_the_tensors_does_not_name_it(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weights: np.ndarray, *_: object, **__: object) -> np.ndarray:
        if weights.size:
            raise ValueError("No threading layer could be loaded.")
        return np.empty(0, np.uint8)

    monkeypatch.setattr(convert_package.packing, "q43nl", broken)
    message = failing(capsys, "convert", model, f"{model}.out")
    assert message == "No threading layer could be loaded."
    assert os.listdir(model.parent) == [model.name]


def test_a_pattern_that_matches_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failing(capsys, "convert", model, f"{model}.out", "--exclude", "*.wieght")
    assert message == f"{model}: exclude '*.wieght' matches no tensor; near misses: 'layer.weight'"


@pytest.mark.parametrize("package", ["safetensors"])
def test_a_missing_package(
    model: Path,
    package: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = failing(capsys, "convert", model, f"{model}.out", "--method", "grid")
    assert message.endswith('pip install ".[convert]"')


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback(
    place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", str(tmp_path / "missing")]
    arguments.insert(place, "--debug")
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert "FileNotFoundError" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 1, "error: out of memory"),  # no signal came
        (MemoryError("4 GiB"), 1, "error: out of memory: 4 GiB"),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("two\n  lines"), 1, "error: two lines"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (RuntimeError("\x1b[2J größe"), 1, "error: \\x1b[2J größe"),
        (OSError("no number"), 1, "error: no number"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, None),
    ],
)
def test_how_a_run_ends(
    raised: BaseException,
    code: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        raise raised

    monkeypatch.setattr(_process, "_forget_stdout", lambda: None)  # pytest needs it
    # Who runs the tests in the background of a script has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _process.run(work) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ("" if line is None else f"q43nl-numba: {line}\n")


def test_an_interrupt_where_the_caller_handles_signals(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert _process.run(work) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "q43nl-numba: interrupted\n"


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cli.main(["inspect", str(tmp_path / "missing")])
    assert signal.getsignal(signal.SIGTERM) is before

"""The script that writes the README's tables: what they say, and what happens to the README."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from q43nl_numba import compare, quality

VARIANTS = [variant for variant in compare.VARIANTS if variant.method != "exact"]
SCRIPT = Path(__file__).parents[1] / "asv_bench" / "performance.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture
def no_peers(monkeypatch):
    for package in ("gguf", "libgguf"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError


@pytest.fixture
def weights(script, rng):
    return rng.standard_normal((2, script.ROW), dtype=np.float32)


def cells(table):
    """A table's lines as lists of cells; the rule under the heading is checked and left out."""
    heading, rule, *lines = [line.strip("|").split("|") for line in table.splitlines()]
    assert rule == ["---"] * len(heading)
    assert all(len(line) == len(heading) for line in lines)
    return [[cell.strip() for cell in line] for line in (heading, *lines)]


def marked(script, **sections):
    begin, end = script.BEGIN, script.END
    return "top\n" + "".join(
        f"{begin.format(name=name)}\n{text}\n{end.format(name=name)}\nbetween\n"
        for name, text in sections.items()
    )


def test_missing_peers_are_left_out_with_a_note(script, no_peers, capsys):
    assert len(script.contenders()) == len(VARIANTS)
    notes = capsys.readouterr().err.splitlines()
    assert [note.split()[0] for note in notes] == ["gguf", "libgguf"]
    assert all("[peers]" in note for note in notes)


def test_a_peer_that_is_there_competes(script, monkeypatch):
    monkeypatch.setattr(script, "PEERS", {"copy": lambda: iter([script.copy_contender()])})
    assert script.contenders()[-1].label == "`np.copyto`"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_come_back_where_they_were(script, threads):
    rows = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
    out = np.zeros_like(rows)
    parts = script.in_parts(np.negative, rows, threads)
    assert len(parts) == threads
    script.back_in_parts(np.negative, parts, out, 1)
    assert np.array_equal(out, rows)


def test_measured_error_is_the_packages_own(script, no_peers, weights):
    rows = script.measure(script.contenders(), weights, [1], repeat=0)
    for row, variant, contender in zip(rows, VARIANTS, script.contenders(), strict=True):
        known = quality(weights, contender.quantize(weights, 1))
        assert row.mse == pytest.approx(known.mse, rel=1e-6), variant
        assert row.snr_db == pytest.approx(known.snr_db, abs=1e-5), variant
        assert row.bits_per_weight == 4.75


def test_speed_table(script, no_peers, weights):
    found = [*script.contenders(), script.copy_contender()]
    table = cells(script.speed_table(script.measure(found, weights, [2, 1], repeat=1), [2, 1]))
    assert table[0][-4:] == [
        "quantize, 2 threads",
        "quantize, 1 thread",
        "dequantize, 2 threads",
        "dequantize, 1 thread",
    ]
    assert [line[0] for line in table[1:]] == [one.label for one in found]
    assert table[1][2] == "1.0000"  # grid, which the ratios refer to
    assert all(float(cell) > 0 for line in table[1:-1] for cell in line[4:])
    assert table[-1][1:6] == ["32", "0", "exact", "-", "-"]  # a copy encodes nothing


def test_a_contender_that_chooses_its_threads_is_timed_once(script, weights):
    alone = script.Contender(
        "alone",
        lambda rows, threads: rows / 2,
        lambda packed, out, threads: np.copyto(out, packed),
        lambda packed: 8 * packed.nbytes,
        takes_threads=False,
    )
    (row,) = script.measure([alone], weights, [2, 1], repeat=1)
    assert set(row.quantize) == set(row.dequantize) == {2}
    assert cells(script.speed_table([row], [2, 1]))[1][5::2] == ["-", "-"]
    assert row.snr_db == pytest.approx(10 * np.log10(4))


def test_model_table_leaves_blank_what_was_not_converted(script):
    rows = [script.Row(label, 4.75, 0.5, 20.0, {}, {}) for label in ("ours", "peer")]
    table = cells(script.model_table(rows, [script.Command(1.26, 99.6, 13.04)]))
    assert table[1] == ["ours", "4.75", "1.0000", "20.00 dB", "1.3 s", "100 MiB", "13.0 MB"]
    assert table[2][4:] == ["-", "-", "-"]


def test_sections_are_replaced_between_their_markers(script, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(marked(script, one="old", two="old"))
    path.chmod(0o640)
    script.update(path, {"one": "| 1 |", "two": "new\n\nlines"})
    assert path.read_text() == marked(script, one="| 1 |", two="new\n\nlines")
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spoil", ["missing", "twice", "reversed"])
def test_without_sound_markers_nothing_is_replaced(script, tmp_path, spoil):
    begin, end = (marker.format(name="two") for marker in (script.BEGIN, script.END))
    before = (
        marked(script, one="old")
        + {
            "missing": f"{begin}\nold\n",
            "twice": f"{begin}\nold\n{end}\n{end}\n",
            "reversed": f"{end}\nold\n{begin}\n",
        }[spoil]
    )
    path = tmp_path / "README.md"
    path.write_text(before)
    with pytest.raises(ValueError, match="two: begin"):
        script.update(path, {"one": "new", "two": "new"})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_readme_has_the_markers(script):
    text = (SCRIPT.parents[1] / "README.md").read_text(encoding="utf-8")
    sections = dict.fromkeys(("performance", "costs", "generations", "model"), "x")
    assert script.replace(text, sections) != text


def test_the_whole_script(script, no_peers, tmp_path, capsys, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(marked(script, performance="", costs="", generations=""))
    monkeypatch.setattr(script, "costs_table", lambda: "| costs |")
    monkeypatch.setattr(script, "generations_table", lambda: "| generations |")
    script.main(["--size", str(script.ROW), "--repeat", "1", "--update", str(path)])
    text = path.read_text()
    assert "4,096 normal weights" in text
    assert "| costs |" in text
    assert "| generations |" in text
    for part in script.speed_table([], [1]).splitlines()[0].split("|")[1:4]:
        assert part in text
    assert "4,096 normal weights" in capsys.readouterr().out


def test_a_models_section(script, no_peers, tmp_path, rng, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("ml_dtypes")
    matrix = rng.standard_normal((40, script.ROW), dtype=np.float32)
    path = tmp_path / "small.safetensors"
    safetensors.save_file({"matrix": matrix, "vector": matrix[0]}, path)
    monkeypatch.setattr(script, "COMMAND_REPEAT", 1)
    monkeypatch.setattr(script, "VARIANTS", VARIANTS[:1])
    note, table, last = script.model_section(script.contenders(), path).split("\n\n")
    assert "`small.safetensors`, 0.7 MB, 163,840 weights" in note
    assert cells(table)[1][1] == "4.75"
    assert cells(table)[1][6] == "0.1 MB"
    assert last.endswith("and writes 0.7 MB.")


def test_a_commands_peak_is_its_own(script):
    mine = np.ones(256 << 17)  # 256 MiB, which are not the command's
    _, peak = script.run([sys.executable, "-c", "pass"])
    assert peak < mine.nbytes / 2**20


def test_a_command_that_fails_is_an_error(script, tmp_path):
    with pytest.raises(script.subprocess.CalledProcessError):
        script.time_command("convert", str(tmp_path / "missing"), str(tmp_path / "out"))


def test_fixed_costs(monkeypatch):
    costs = load(SCRIPT.with_name("fixed_costs.py"))
    monkeypatch.setattr(costs, "METHODS", ("grid",))
    monkeypatch.setattr(costs, "ROUNDS", 1)
    monkeypatch.setattr(costs, "PROCESSES", 1)
    heading, row = costs.cost_rows()
    assert len(heading) == len(row)
    assert row[0] == "`grid`"
    assert [cell.split()[1] for cell in row[1:]] == ["us", "s", "s", "s"]
    assert all(float(cell.split()[0]) > 0 for cell in row[1:])


@pytest.mark.parametrize("option", [["--size", "100"], ["--size", "0"], ["--repeat", "0"]])
def test_arguments_are_checked(script, option, capsys):
    with pytest.raises(SystemExit):
        script.main(option)
    assert option[0] in capsys.readouterr().err

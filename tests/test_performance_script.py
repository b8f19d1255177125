"""The script that writes the README's tables: what they say, and what happens to the README."""

import sys
from pathlib import Path

import numpy as np
import pytest

from q43nl_numba import compare, quality

TOP = Path(__file__).parents[1]
sys.path.append(str(TOP))  # the programs are not part of the package

from asv_bench.tables import (  # noqa: E402
    commands,
    contenders,
    conversions,
    fixed_costs,
    measuring,
    performance,
    readme,
)

VARIANTS = [variant for variant in compare.VARIANTS if variant.method != "exact"]
ROW = contenders.ROW


@pytest.fixture
def no_peers(monkeypatch):
    for package in ("gguf", "libgguf"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError


@pytest.fixture
def weights(rng):
    return rng.standard_normal((2, ROW), dtype=np.float32)


def cells(table):
    """A table's lines as lists of cells; the rule under the heading is checked and left out."""
    heading, rule, *lines = [line.strip("|").split("|") for line in table.splitlines()]
    assert rule == ["---"] * len(heading)
    assert all(len(line) == len(heading) for line in lines)
    return [[cell.strip() for cell in line] for line in (heading, *lines)]


def marked(**sections):
    begin, end = readme.BEGIN, readme.END
    return "top\n" + "".join(
        f"{begin.format(name=name)}\n{text}\n{end.format(name=name)}\nbetween\n"
        for name, text in sections.items()
    )


def test_missing_peers_are_left_out_with_a_note(no_peers, capsys):
    assert len(contenders.contenders()) == len(VARIANTS)
    notes = capsys.readouterr().err.splitlines()
    assert [note.split()[0] for note in notes] == ["gguf", "libgguf"]
    assert all("[peers]" in note for note in notes)


def test_a_peer_that_is_there_competes(monkeypatch):
    monkeypatch.setattr(contenders, "PEERS", {"copy": lambda: iter([contenders.copy_contender()])})
    assert contenders.contenders()[-1].label == "`np.copyto`"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_come_back_where_they_were(threads):
    rows = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
    out = np.zeros_like(rows)
    parts = contenders.in_parts(np.negative, rows, threads)
    assert len(parts) == threads
    contenders.back_in_parts(np.negative, parts, out, 1)
    assert np.array_equal(out, rows)


def test_measured_error_is_the_packages_own(no_peers, weights):
    rows = measuring.measure(contenders.contenders(), weights, [1], repeat=0)
    for row, variant, contender in zip(rows, VARIANTS, contenders.contenders(), strict=True):
        known = quality(weights, contender.quantize(weights, 1))
        assert row.mse == pytest.approx(known.mse, rel=1e-6), variant
        assert row.snr_db == pytest.approx(known.snr_db, abs=1e-5), variant
        assert row.bits_per_weight == 4.75


def test_speed_table(no_peers, weights):
    found = [*contenders.contenders(), contenders.copy_contender()]
    table = cells(
        performance.speed_table(measuring.measure(found, weights, [2, 1], repeat=1), [2, 1])
    )
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


def test_the_short_table_has_the_figures_of_the_long_one():
    labels = {label for *_, chosen in performance.CHOICES for label in chosen}
    mine = {contenders.package_contender(variant).label for variant in VARIANTS}
    assert labels <= mine
    rows = [measuring.Row("`grid`", 4.75, 0.5, 20.0, {2: 1.0}, {})]
    rows += [measuring.Row(label, 4.75, 0.4, 21.0, {2: 123.4}, {}) for label in sorted(labels)]
    table = cells(performance.choice_table(rows, 2))
    assert [line[2] for line in table[1:]] == ["0.80", "0.80", "0.80 to 0.80"]
    assert [line[3] for line in table[1:]] == ["123", "123", "123 to 123"]


def test_a_contender_that_chooses_its_threads_is_timed_once(weights):
    alone = contenders.Contender(
        "alone",
        lambda rows, threads: rows / 2,
        lambda packed, out, threads: np.copyto(out, packed),
        lambda packed: 8 * packed.nbytes,
        takes_threads=False,
    )
    (row,) = measuring.measure([alone], weights, [2, 1], repeat=1)
    assert set(row.quantize) == set(row.dequantize) == {2}
    assert cells(performance.speed_table([row], [2, 1]))[1][5::2] == ["-", "-"]
    assert row.snr_db == pytest.approx(10 * np.log10(4))


def test_model_table_leaves_blank_what_was_not_converted():
    rows = [measuring.Row(label, 4.75, 0.5, 20.0, {}, {}) for label in ("ours", "peer")]
    table = cells(performance.model_table(rows, [commands.Command(1.26, 99.6, 13.04)]))
    assert table[1] == ["ours", "4.75", "1.0000", "20.00 dB", "1.3 s", "100 MiB", "13.0 MB"]
    assert table[2][4:] == ["-", "-", "-"]


def test_sections_are_replaced_between_their_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(marked(one="old", two="old"))
    path.chmod(0o640)
    readme.update(path, {"one": "| 1 |", "two": "new\n\nlines"})
    assert path.read_text() == marked(one="| 1 |", two="new\n\nlines")
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spoil", ["missing", "twice", "reversed"])
def test_without_sound_markers_nothing_is_replaced(tmp_path, spoil):
    begin, end = (marker.format(name="two") for marker in (readme.BEGIN, readme.END))
    before = (
        marked(one="old")
        + {
            "missing": f"{begin}\nold\n",
            "twice": f"{begin}\nold\n{end}\n{end}\n",
            "reversed": f"{end}\nold\n{begin}\n",
        }[spoil]
    )
    path = tmp_path / "README.md"
    path.write_text(before)
    with pytest.raises(ValueError, match="two: begin"):
        readme.update(path, {"one": "new", "two": "new"})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_readme_has_the_markers():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    sections = dict.fromkeys(("choice", "performance", "costs", "generations", "model"), "x")
    assert readme.replace(text, sections) != text


def test_the_whole_script(no_peers, tmp_path, capsys, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(marked(choice="", performance="", costs="", generations=""))
    monkeypatch.setattr(performance, "costs_table", lambda: "| costs |")
    monkeypatch.setattr(performance, "generations_table", lambda: "| generations |")
    performance.main(["--size", str(ROW), "--repeat", "1", "--update", str(path)])
    text = path.read_text()
    assert "4,096 normal weights" in text
    assert "| good results at once | `gradient`, the default |" in text
    assert "| costs |" in text
    assert "| generations |" in text
    for part in performance.speed_table([], [1]).splitlines()[0].split("|")[1:4]:
        assert part in text
    assert "4,096 normal weights" in capsys.readouterr().out


def test_a_models_section(no_peers, tmp_path, rng, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("ml_dtypes")
    matrix = rng.standard_normal((40, ROW), dtype=np.float32)
    path = tmp_path / "small.safetensors"
    safetensors.save_file({"matrix": matrix, "vector": matrix[0]}, path)
    monkeypatch.setattr(commands, "COMMAND_REPEAT", 1)
    monkeypatch.setattr(commands, "VARIANTS", VARIANTS[:1])
    note, table, last = performance.model_section(contenders.contenders(), path).split("\n\n")
    assert "`small.safetensors`, 0.7 MB, 163,840 weights" in note
    assert cells(table)[1][1] == "4.75"
    assert cells(table)[1][6] == "0.1 MB"
    assert last.endswith("and writes 0.7 MB.")


def test_a_commands_peak_is_its_own():
    mine = np.ones(256 << 17)  # 256 MiB, which are not the command's
    _, peak = commands.run([sys.executable, "-c", "pass"])
    assert peak < mine.nbytes / 2**20


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(commands.subprocess.CalledProcessError):
        commands.time_command("convert", str(tmp_path / "missing"), str(tmp_path / "out"))


def test_conversions_beside_the_kernels(tmp_path, rng, monkeypatch, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("ml_dtypes")
    path = tmp_path / "small.safetensors"
    matrix = rng.standard_normal((40, ROW), dtype=np.float32)
    safetensors.save_file({"matrix": matrix, "other": matrix[:1]}, path)
    monkeypatch.setattr(conversions, "VARIANTS", VARIANTS[:2])
    conversions.main([str(path), "--method", "grid", "--repeat", "1"])
    note, table = capsys.readouterr().out.strip().split("\n\n")
    assert "`small.safetensors`, 167,936 weights" in note
    heading, row = cells(table)
    assert len(row) == len(heading)
    assert row[0] == "grid"
    assert row[5] == "0.1 MB"
    worst, mean = (float(cell.split()[0]) for cell in (row[7], row[6]))
    assert 20 < worst <= mean < 23
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_fixed_costs(monkeypatch):
    monkeypatch.setattr(fixed_costs, "METHODS", ("grid",))
    monkeypatch.setattr(fixed_costs, "ROUNDS", 1)
    monkeypatch.setattr(fixed_costs, "PROCESSES", 1)
    heading, row = fixed_costs.cost_rows()
    assert len(heading) == len(row)
    assert row[0] == "`grid`"
    assert [cell.split()[1] for cell in row[1:]] == ["us", "s", "s", "s"]
    assert all(float(cell.split()[0]) > 0 for cell in row[1:])


@pytest.mark.parametrize("option", [["--size", "100"], ["--size", "0"], ["--repeat", "0"]])
def test_arguments_are_checked(option, capsys):
    with pytest.raises(SystemExit):
        performance.main(option)
    assert option[0] in capsys.readouterr().err

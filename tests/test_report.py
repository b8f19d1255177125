"""The report's page: what it says, that it is safe and needs nothing else, how it is shown."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from q43nl_numba import GROUP_DTYPE, dequantize, q43nl, quality
from q43nl_numba.convert.html import html_page, layer_and_kind
from q43nl_numba.convert.judging import Figures, Sample
from q43nl_numba.convert.plots import numeric_axis
from q43nl_numba.convert.results import ConvertReport, KeptTensor, PackedTensor
from q43nl_numba.convert.style import SERIES, STYLE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
BAD_NAME = "lm_head<script>alert(1)</script>&\"'\x1b\u202e"
EMPTY = {"br", "meta", "wbr", "circle", "rect", "line"}


def packed_tensor(name: str, weights: np.ndarray) -> PackedTensor:
    packed = q43nl(weights, "coarse_fine")
    groups, decoded = packed.view(GROUP_DTYPE), dequantize(packed)
    found = quality(weights, packed)
    nibbles = np.concatenate([groups["codes"] & 15, groups["codes"] >> 4])
    largest = float(np.abs(weights).max())

    def histogram(values: np.ndarray) -> tuple[int, ...]:
        return tuple(np.histogram(values, 64, (-largest, largest))[0].tolist())

    sample = Sample(
        groups=groups.size,
        noise=found.mse * weights.size,
        grid_noise=quality(weights, q43nl(weights, "grid")).mse * weights.size,
        curves=tuple(np.bincount(groups["curve"].astype(int) + 128, minlength=256).tolist()),
        codes=tuple(np.bincount(nibbles.ravel(), minlength=16).tolist()),
        largest=largest,
        before=histogram(weights),
        after=histogram(decoded),
    )
    signal = float(np.square(weights, dtype=np.float64).sum())
    noise = found.mse * weights.size
    figures = Figures(weights.size, signal, noise, found.max_abs_error, sample)
    return PackedTensor(name, (weights.size // 32, 32), packed.nbytes, figures, "coarse_fine", "f")


@pytest.fixture(scope="module")
def report() -> ConvertReport:
    rng = np.random.default_rng(5)
    kinds = ("self_attn.q_proj", "mlp.down_proj")
    packed = [
        packed_tensor(
            f"model.layers.{layer}.{kind}.weight",
            rng.standard_t(4 + layer, 2048).astype(np.float32),
        )
        for layer in range(16)
        for kind in kinds
    ]
    packed.append(packed_tensor(BAD_NAME, np.ones(64, np.float32)))
    kept = tuple(
        KeptTensor(f"norm.{i}", (64,), "F32", "F16", 128, "fewer than 2 dimensions")
        for i in range(5)
    )
    return ConvertReport(tuple(packed), kept, 400_000, 100_000, 1.25, ("left.over",))


@pytest.fixture(scope="module")
def page(report: ConvertReport) -> str:
    return html_page(report, "in<dir>", "out")


class Reader(HTMLParser):
    """Checks that tags are balanced; collects tables, elements with an id, and counted marks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: dict[str, str] = {}
        self.captions: list[str] = []
        self.counts: dict[str, list[int]] = {}
        self.marks = {"circle": 0, "beyond": 0}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "figcaption":
            self.captions.append("")
        if "data-count" in values:
            self.counts.setdefault(self.captions[-1], []).append(int(values["data-count"] or 0))
        self.marks["circle"] += tag == "circle"
        self.marks["beyond"] += "beyond" in (values.get("class") or "")
        if tag == "table":
            self.tables[values["id"] or ""] = []
        if tag == "tr":
            [*self.tables.values()][-1].append([])
        if tag in ("td", "th"):
            [*self.tables.values()][-1][-1].append("")
        if tag not in EMPTY or tag in ("circle", "rect", "line"):
            self.open.append((tag, values))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if tags and tags[-1] in ("td", "th"):
            [*self.tables.values()][-1][-1][-1] += data
        if "figcaption" in tags:
            self.captions[-1] += data
        for tag, values in self.open:
            if values.get("id") and tag != "table" and "small" not in tags:
                self.ids[values["id"] or ""] = self.ids.get(values["id"] or "", "") + data


def check_figures(text: str, report: ConvertReport) -> None:
    """Read the figures back from a page and compare them with the report's."""
    read = Reader(text)
    assert read.ids["snr"] == f"{report.snr_db:.2f} dB"
    assert read.ids["bits"] == f"{report.bits_per_weight:.2f}"
    assert (read.ids["packed"], read.ids["kept"]) == ("33", "5")
    assert read.ids["bytes"] == "100.0 kB"
    worst_first = sorted(report.packed, key=lambda tensor: tensor.snr_db)
    heading, *rows = read.tables["packed-tensors"]
    assert heading[:4] == ["tensor", "SNR dB", "MSE ratio", "largest error"]
    rows += read.tables["packed-tensors-more"][1:]
    for row, tensor in zip(rows, worst_first, strict=True):
        ratio = f"{tensor.mse_ratio:.4f}".replace("nan", "-")
        assert row[1:4] == [f"{tensor.snr_db:.2f}", ratio, f"{tensor.max_abs_error:#.3g}"]
        if tensor.name != BAD_NAME:
            assert row[0] == tensor.name
    assert rows[-1][0] == "lm_head<script>alert(1)</script>&\"'\\x1b\\u202e"
    assert read.marks == {"circle": 32, "beyond": 1}
    samples = [tensor.figures.sample for tensor in report.packed]
    assert sum(read.counts["Curves"]) == sum(sum(sample.curves) for sample in samples)
    codes = np.sum([sample.codes for sample in samples], axis=0)
    assert read.counts["Codes"] == codes[codes > 0].tolist()
    for tensor in worst_first[:6]:
        shown = read.counts[tensor.name]
        assert 0.99 * 2048 < sum(shown) <= 2048
        assert set(shown) <= set(tensor.figures.sample.before)
    assert read.tables["reasons"] == [["reason", "tensors"], ["fewer than 2 dimensions", "5"]]
    assert read.tables["kept-tensors"][1] == [
        "norm.0", "64", "F32 → F16", "fewer than 2 dimensions"
    ]  # fmt: skip
    assert "left.over" in read.ids["unused-importance"]


def test_the_page_holds_the_figures(page: str, report: ConvertReport) -> None:
    check_figures(page, report)


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r"<script|<link|<img|<iframe|<object|src=|href=|@import|url\(|http", page)
    assert not set(page) & set("\x1b\u202e")
    assert "in&lt;dir&gt;" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)


def test_a_model_of_which_nothing_is_packed() -> None:
    kept = (KeptTensor("n", (3,), "F32", "F32", 12, "fewer than 2 dimensions"),)
    read = Reader(html_page(ConvertReport((), kept, 12, 12, 0.0), "a", "b"))
    assert (read.ids["snr"], read.ids["packed"]) == ("-", "0")
    read = Reader(html_page(ConvertReport((), (), 0, 8, 0.0), "a", "b"))
    assert (read.ids["bits"], read.ids["kept"]) == ("-", "0")


@pytest.mark.parametrize("weights", [np.ones(32, np.float32), np.zeros(64, np.float32)])
def test_tensors_of_equal_weights(weights: np.ndarray) -> None:
    tensor = packed_tensor("w", weights)
    page = html_page(ConvertReport((tensor,), (), 12, 12, 0.0), "a", "b")
    assert Reader(page).ids["snr"] == "exact"
    assert not re.search(r"nan|inf%", page)


def test_many_tensors_are_folded_and_then_only_counted(report: ConvertReport) -> None:
    many = ConvertReport(report.packed * 70, (), 12, 12, 0.0)
    page = html_page(many, "a", "b")
    read = Reader(page)
    rows = len(read.tables["packed-tensors"]) + len(read.tables["packed-tensors-more"]) - 2
    assert rows == 2000
    assert "And 310 more" in page
    huge = html_page(ConvertReport(report.packed * 140, (), 12, 12, 0.0), "a", "b")
    assert "of the 4,000 worst tensors" in huge
    assert Reader(huge).marks["circle"] == 4000


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.7.mlp.up_proj.weight", 7, "mlp.up_proj"),
        ("h.0.attn.c_attn.weight", 0, "attn.c_attn"),
        ("blk.3.ffn_up_exps.weight", 3, "ffn_up_exps"),
        ("m.layers.2.experts.11.w1.weight", 2, "experts.*.w1"),
        ("classifier.4.weight", 4, "classifier"),
        ("wte", None, "wte"),
        ("", None, ""),
    ],
)
def test_layers_are_found_in_names(name: str, layer: int | None, kind: str) -> None:
    assert layer_and_kind(name) == (layer, kind)


@pytest.mark.parametrize(
    "values", [[], [math.inf], [3.0], [0.0, 0.0], [21.9, 23.1], [-5, 1e6], [1e-9, 2e-9]]
)
def test_axes_hold_all_values(values: list[float]) -> None:
    axis = numeric_axis("y", values)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    for value in filter(math.isfinite, values):
        assert -1e-6 <= axis.percent(value) <= 100 + 1e-6


# Colors


def palettes() -> list[dict[str, str]]:
    """The variables of the light colors, then those of the dark ones."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colors_are_readable_in_both_schemes() -> None:
    light, dark = palettes()
    assert light.keys() == dark.keys()
    for colors in (light, dark):
        for ground in (colors["page"], colors["card"]):
            assert contrast(colors["text"], ground) > 7
            assert contrast(colors["muted"], ground) > 4.5
            for name in ("after", *(f"c{i}" for i in range(SERIES + 1))):
                assert contrast(colors[name], ground) > 3, name


# A browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PROBE = """<script>
const marks = [...document.querySelectorAll("svg rect, svg circle")];
const outside = marks.filter(mark => {
    const [box, frame] = [mark, mark.closest("svg")].map(e => e.getBoundingClientRect());
    return box.left < frame.left - 5 || box.right > frame.right + 5
        || box.top < frame.top - 5 || box.bottom > frame.bottom + 5;
});
parent.document.body.dataset.found = [
    innerWidth, document.documentElement.scrollWidth, marks.length, outside.length,
    getComputedStyle(document.body).backgroundColor].join(";");
</script></body>"""


def in_browser(path: Path, profile: Path, *options: str) -> str:
    """The document after a headless browser has laid it out."""
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *options, "--dump-dom", path.as_uri()],
        capture_output=True,
        check=True,
        timeout=120,
    )
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_reads_the_same_figures(page: str, report: ConvertReport, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    check_figures(in_browser(path, tmp_path / "profile"), report)


#: Each would run, if it were not escaped in the place that it is written to.
ATTACKS = [
    "<script>hit()</script>",
    "</title><script>hit()</script>",
    "</style><script>hit()</script>",
    "</svg><img src=x onerror=hit()>",
    '"><img src=x onerror=hit()>',
    "'><img src=x onerror=hit()>",
    '" autofocus tabindex=0 onfocus=hit() x="',
    "' onload='hit()",
    "--><svg onload=hit()>",
    "]]><svg onload=hit()>",
    "&lt;script&gt;hit()&lt;/script&gt;",
    "<a href=javascript:hit()>x</a>",
    "<iframe srcdoc='<script>parent.hit()</script>'>",
    "<base href=//elsewhere/><link rel=stylesheet href=//elsewhere/x>",
    "<meta http-equiv=refresh content='0;url=//elsewhere'>",
    "\u2028<script>hit()</script>\0",
]
LISTENER = "<script>function hit() { document.documentElement.dataset.hit = 'yes'; }</script>"


def attacking_page() -> str:
    """A report in which every text that a model may give is an attack."""
    rng = np.random.default_rng(3)
    together = "".join(ATTACKS)
    packed = [
        replace(
            packed_tensor(f"model.layers.{i}.{attack}", rng.standard_normal(64, np.float32)),
            method=attack,
            file=attack,
        )
        for i, attack in enumerate([*ATTACKS, together])
    ]
    kept = tuple(KeptTensor(attack, (64,), attack, attack, 128, attack) for attack in ATTACKS)
    report = ConvertReport(
        tuple(packed), kept, 400_000, 100_000, 1.0, (*ATTACKS,), missing_importance=(*ATTACKS,)
    )
    return html_page(report, together, together)


def shown_after(page: str, path: Path, profile: Path) -> str:
    """What a browser makes of a page, to which a function that attacks call was added."""
    path.write_text(page.replace("<head>", f"<head>{LISTENER}"), encoding="utf-8")
    return in_browser(path, profile, "--virtual-time-budget=3000")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_no_name_is_a_program(tmp_path: Path) -> None:
    """In a browser, which parses as no library does; and the attacks work where they may."""
    page = attacking_page()
    shown = shown_after(page, tmp_path / "report.html", tmp_path / "profile")
    assert 'data-hit="yes"' not in shown
    assert shown.count("<script") == 1  # the one that was added
    for tag in ("img", "iframe", "base", "link", "a ", "meta http-equiv"):
        assert f"<{tag}" not in shown, tag
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', shown))
    unsafe = page.replace("&lt;", "<").replace("&gt;", ">")
    assert 'data-hit="yes"' in shown_after(unsafe, tmp_path / "bad.html", tmp_path / "profile")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("scheme", "options"), [("light", ()), ("dark", ("preferredColorScheme=0",))]
)
@pytest.mark.parametrize("width", [390, 1280])
def test_how_a_browser_lays_it_out(
    page: str, tmp_path: Path, scheme: str, options: tuple[str, ...], width: int
) -> None:
    """A copy of the page with a script asks the browser; a frame, as windows have a least width."""
    probed = escape(page.replace("</body>", PROBE), quote=True)
    path = tmp_path / "probed.html"
    frame = f'<body><iframe width="{width}" height="900" srcdoc="{probed}"></iframe>'
    path.write_text(f"<!DOCTYPE html>{frame}", encoding="utf-8")
    settings = [f"--blink-settings={option}" for option in options]
    shown = in_browser(path, tmp_path / "profile", *settings)
    found = re.search(r'data-found="([^"]*)"', shown)
    assert found
    inner, needed, marks, outside, ground = found[1].split(";")
    assert int(needed) <= int(inner) == width
    assert int(marks) > 100
    assert int(outside) == 0
    light, dark = (palette["page"] for palette in palettes())
    wanted = {"light": light, "dark": dark}[scheme]
    assert ground == f"rgb({', '.join(str(int(wanted[i : i + 2], 16)) for i in (1, 3, 5))})"

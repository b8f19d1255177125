"""The predictor's network: its file, what the kernel makes of it, and its training."""

import json

import numpy as np
import oracle
import pytest
import samples

from q43nl_numba import q43nl
from q43nl_numba._jit import prange
from q43nl_numba._kernel import Kernel
from q43nl_numba.methods import predictor
from q43nl_numba.methods.predictor import network, train


@pytest.fixture
def content():
    return json.loads(network.FILE.read_bytes())


# --- the file --------------------------------------------------------------------------------


def test_the_file_is_small():
    assert network.FILE.stat().st_size < 8_000


def test_written_and_read_again(tmp_path, rng):
    path = tmp_path / "network.json"
    layers = [rng.standard_normal(shape).astype(np.float32) for shape in network.SHAPES]
    network.write_network(layers, path)
    for written, read in zip(layers, network.read_network(path), strict=True):
        assert read.dtype == np.float32
        assert np.array_equal(read, written)


def test_one_number_changed(tmp_path, content):
    content["layers"][1][2][3] += 1e-3
    path = tmp_path / "network.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match=r"network\.json has the digest .*, expected .*install"):
        network.read_network(path)


def test_a_row_lost(tmp_path, content):
    content["layers"][0].pop()
    path = tmp_path / "network.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match=r"layers of shape \(\(15, 33\).*expected \(\(16, 33\)"):
        network.read_network(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"layers": 3, "sha256": ""}', "\xff"])
def test_no_network_at_all(tmp_path, text):
    path = tmp_path / "network.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RuntimeError, match=r"network\.json cannot be read"):
        network.read_network(path)


def test_no_file(tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot be read.*install q43nl_numba again"):
        network.read_network(tmp_path / "network.json")


def test_an_error_leaves_the_output_alone(monkeypatch, tmp_path):
    network.flat_network.cache_clear()
    monkeypatch.setattr(network.read_network, "__defaults__", (tmp_path / "network.json",))
    out = np.full(19, 7, np.uint8)
    try:
        with pytest.raises(RuntimeError, match="cannot be read"):
            q43nl(np.ones(32), "predictor", out=out)
        assert np.all(out == 7)
    finally:
        network.flat_network.cache_clear()


# --- the kernel ------------------------------------------------------------------------------


def _run(magnitudes, numbers, counts, estimates):
    for _ in prange(1):
        predictor.set_counts(magnitudes, None, counts)
        predictor.estimate(counts, numbers, estimates)


def test_counts_and_estimates_are_those_of_numpy(rng):
    magnitudes = rng.random((32, 48)).astype(np.float32)
    magnitudes[:, 3] = 0
    magnitudes[:, 4] = 1
    counts = np.empty((network.COUNTS, 48), np.float32)
    estimates = np.empty((network.ESTIMATES, 48), np.float32)
    Kernel(_run)(magnitudes, network.flat_network(), counts, estimates, num_threads=1)
    thresholds = (np.arange(network.COUNTS) + 0.5) / network.COUNTS
    values = (magnitudes[None] > thresholds.astype(np.float32)[:, None, None]).sum(axis=1)
    assert np.array_equal(counts, values)
    layers = network.read_network()
    for number, layer in enumerate(layers):
        values = layer[:, :1] + layer[:, 1:].astype(np.float64) @ values
        values = values if number == 2 else np.maximum(values, 0)
    np.testing.assert_allclose(estimates, values, rtol=1e-4, atol=1e-4)


def test_the_network_earns_its_place(normal):
    """Beside the same steps from the best three constants, which another search finds."""
    best = train.best_constants(train.draw_groups({"normal": train.TRAINING["normal"]}, 1), 3)
    constant = oracle.search(normal, best - 127, oracle.round_nearest)
    ours = q43nl(normal, "predictor")
    assert oracle.mse(normal, ours) < 0.93 * oracle.mse(normal, constant)


# --- training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups():
    chosen = {name: train.TRAINING[name] for name in ("normal", "laplace", "bimodal 0.1")}
    return train.draw_groups(chosen, seed=1)


def test_the_tables_hold_what_the_methods_store(groups):
    """The least error of each table is that of the oracle's search of all curves."""
    rng = np.random.default_rng([1, 0])
    weights = train.TRAINING["normal"](rng, (train.GROUPS, 32)).astype(np.float32)[:64]
    scales = oracle.scale_up(np.abs(weights).max(axis=1)).astype(np.float64)
    found = groups.errors[:64].min(axis=1) * scales**2
    best = oracle.errors(weights, oracle.best_nearest(weights))
    # A trial may lead to a better curve than its own, never below the optimum of all.
    np.testing.assert_allclose(found, best, rtol=1e-3)


def test_weights_add_up_for_every_distribution(groups):
    shares = groups.weights * groups.errors.min(axis=1)
    np.testing.assert_allclose(shares.reshape(3, -1).sum(axis=1), 1, rtol=1e-6)


def test_training_learns_and_repeats_itself(groups):
    layers = train.train(groups, steps=60)
    again = train.train(groups, steps=60)
    assert all(map(np.array_equal, layers, again))
    other = train.train(groups, steps=60, seed=2)
    assert not all(map(np.array_equal, layers, other))
    untrained = train.train(groups, steps=0)
    held_out = train.draw_groups({"logistic": train.HELD_OUT["logistic"]}, seed=2)
    before, after = (
        train.excess(held_out, train.estimated_rows(found, held_out.counts))
        for found in (untrained, layers)
    )
    assert after < 1 + 0.6 * (before - 1)


def test_slopes_are_those_of_the_loss(rng):
    """Central differences of the loss, on tables without kinks where the estimates lie."""
    groups = 64
    counts = rng.standard_normal((network.COUNTS, groups)).astype(np.float32)
    line = np.linspace(0, 1, train.CURVES, dtype=np.float32)
    tables = rng.random((groups, 1)).astype(np.float32) + rng.random((groups, 1)) * line
    tables = tables.astype(np.float32)
    weights = rng.random(groups).astype(np.float32)
    chosen = np.arange(groups)
    numbers = train.first_network(rng) * 0.3
    slopes = np.zeros_like(numbers)
    train._slopes(counts, tables, weights, chosen, numbers, slopes, num_threads=1)

    def loss(values):
        found = counts.astype(np.float64)
        for number, layer in enumerate(train.split(values)):
            found = layer[:, :1] + layer[:, 1:] @ found
            found = found if number == 2 else np.maximum(found, 0)
        place = (np.clip(found, -1, 1) + 1) * 127
        row = np.minimum(place.astype(int), 253)
        at = np.arange(groups)
        here = tables[at, row] + (place - row) * (tables[at, row + 1] - tables[at, row])
        best = here == here.min(axis=0)
        return (np.where(best, 1, train.LEAK) * here * weights).sum() / groups

    for at in rng.choice(numbers.size, 40, replace=False):
        step = np.zeros_like(numbers)
        step[at] = 1e-3
        expected = (loss(numbers + step) - loss(numbers - step)) / 2e-3
        assert slopes[at] == pytest.approx(expected, rel=0.02, abs=2e-4)


def test_report_on_real_weights(groups, tmp_path, capsys, monkeypatch):
    real = samples.golden()["real_weights"]["input"]
    np.save(tmp_path / "real.npy", real)
    draw = train.given_weights(tmp_path / "real.npy")
    np.testing.assert_array_equal(draw(None, (len(real), 32)), real)
    monkeypatch.setattr(train, "HELD_OUT", {})
    monkeypatch.setattr(train, "ATTEMPTS", 1)
    train.report(network.read_network(), groups, {"real.npy": draw})
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == "real.npy"
    assert 1 <= float(last[1]) < 1.02 < float(last[2])


@pytest.mark.parametrize("array", [np.zeros(33), np.zeros(0), np.zeros(32, int)])
def test_weights_that_are_none(array, tmp_path):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=r"bad\.npy.*multiple of 32"):
        train.given_weights(tmp_path / "bad.npy")


def test_check_says_whether_the_file_is_reproduced(monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda groups: network.read_network())
    monkeypatch.setattr(train, "draw_groups", lambda *_: None)
    monkeypatch.setattr(train, "report", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["train", "--check"])
    assert train.main() == 0
    assert "the same numbers as in" in capsys.readouterr().out
    changed = network.read_network()
    changed[0][0, 0] += 1
    monkeypatch.setattr(train, "train", lambda groups: changed)
    before = network.FILE.read_bytes()
    assert train.main() == 1
    assert network.FILE.read_bytes() == before


def test_scale_by_powers_of_two(rng):
    weights = samples.draw("laplace", 64)
    packed = q43nl(weights, "predictor").reshape(-1, 19)
    scaled = q43nl(weights * np.float32(0.25), "predictor").reshape(-1, 19)
    assert np.array_equal(packed[:, [*range(16), 18]], scaled[:, [*range(16), 18]])

"""The monitor's statistics against scipy and river on the same data, and its thresholds against simulated cameras."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import stats

from edgeedit.device.monitor.detector import ALLOWANCES, Detector, Rate, calibrate
from edgeedit.device.monitor.projection import PROJECTED, Projection
from edgeedit.device.monitor.signals import Expected
from edgeedit.device.monitor.statistics import Cusum, bin_edges, bin_shares, binomial_tail, ks, psi
from edgeedit.mmd import mmd, mmd_test


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 5)), rng.normal(0.4, 1.3, (33, 5))


def test_ks_equals_scipy(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (np.round(a, 1) for a in sets)  # with ties
    assert ks(x, y) == pytest.approx([stats.ks_2samp(x[:, c], y[:, c]).statistic for c in range(5)], abs=1e-12)


def test_psi_is_the_symmetric_relative_entropy_of_scipy(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sets
    p, q = (bin_shares(a, bin_edges(x)) for a in (x, y))
    assert psi(p, q) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), rel=1e-12)
    for column in range(5):
        counts = np.histogram(y[:, column], bins=[-np.inf, *bin_edges(x)[:, column], np.inf])[0]
        assert q[:, column] == pytest.approx((counts + 0.5) / (33 + 5))


def test_mmd_equals_a_plain_computation_by_scipy(sets: tuple[np.ndarray, np.ndarray]) -> None:
    from scipy.spatial.distance import cdist, pdist

    x, y = sets
    kxx, kyy = (2 * np.exp(-0.3 * pdist(a, "sqeuclidean")).sum() / (len(a) * (len(a) - 1)) for a in (x, y))
    wanted = kxx + kyy - 2 * np.exp(-0.3 * cdist(x, y, "sqeuclidean")).mean()
    assert mmd(x, y, 0.3) == pytest.approx(wanted, rel=1e-9)
    value, p = mmd_test(x, y)
    both = np.concatenate([x, y])
    scale = 1 / np.median(pdist(both, "sqeuclidean"))
    assert value == pytest.approx(mmd(x, y, scale), rel=1e-9) and p == pytest.approx(1 / 201)


def test_permutation_p_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(1)
    p = [mmd_test(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), permutations=99, seed=n)[1] for n in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


# river has no release for 3.10.
if sys.version_info >= (3, 11):

    def test_cusum_equals_the_page_hinkley_of_river() -> None:
        from river import drift

        rng = np.random.default_rng(2)
        values = np.concatenate([rng.normal(size=300), rng.normal(1.5, 1.0, 60)])
        theirs = drift.PageHinkley(min_instances=1, delta=0.5, threshold=8.0, alpha=1.0, mode="up")
        ours, total, found, wanted = Cusum(1, 0.5), 0.0, None, None
        for number, value in enumerate(values, start=1):
            total += value
            # River subtracts the running mean itself.
            if ours.step(np.array([value - total / number]))[0] > 8.0 and found is None:
                found = number
            theirs.update(value)
            if theirs.drift_detected and wanted is None:
                wanted = number
        assert found is not None and found == wanted > 300


@pytest.mark.parametrize(("hits", "trials", "chance"), [(0, 10, 0.1), (3, 10, 0.1), (14, 64, 0.1), (64, 64, 0.5)])
def test_binomial_tail_equals_scipy(hits: int, trials: int, chance: float) -> None:
    assert binomial_tail(hits, trials, chance) == pytest.approx(stats.binom.sf(hits - 1, trials, chance), rel=1e-9)


def test_projection_is_frozen_and_keeps_distances() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 768)).astype(np.float32)
    got = Projection(768)(rows)
    assert got.shape == (40, PROJECTED)
    assert (
        np.unpackbits(np.random.PCG64(20_261_125).random_raw(1).astype("<u8").view(np.uint8)).sum()
        == (Projection(64)._matrix[:2] > 0).sum()
    )
    assert np.linalg.norm(got, axis=1).mean() == pytest.approx(np.linalg.norm(rows, axis=1).mean() * np.sqrt(PROJECTED / 768), rel=0.1)


def _clean(rng: np.random.Generator, count: int, expected: Expected, shift: float = 0.0) -> list[dict[str, float]]:
    found = []
    for _ in range(count):
        rows = rng.normal(shift, 1.0, (16, 4))
        row = expected.signals(rows) | {"overrides": rng.binomial(16, 0.02) / 16, "brightness": 0.5 + rng.normal() / 50 + shift / 10}
        found.append(row)
    return found


def test_false_alarms_keep_to_the_stated_rate_and_a_shift_is_seen() -> None:
    called, cameras = 0, 12
    for number in range(cameras):
        rng = np.random.default_rng(number)
        expected = Expected(rng.normal(size=(512, 4)))
        detector = Detector(calibrate(_clean(rng, 192, expected), Rate(400, 0.1), frames=16))
        month = [call for row in _clean(rng, 400, expected) for call in detector.step(row)]
        called += any(call.level == "alarm" for call in month)
        late = [[c.signal for c in detector.step(row) if c.level == "alarm"] for row in _clean(rng, 12, expected, 1.0)]
        assert any(late), "a shift by one standard deviation must be seen within 12 windows"
    # 5 of 12 has a probability below 0.5 % at the stated tenth.
    assert called < 5, f"{called} of {cameras} cameras called in a clean month"


def test_a_chart_calls_once_until_it_is_back() -> None:
    rng = np.random.default_rng(5)
    expected = Expected(rng.normal(size=(256, 4)))
    detector = Detector(calibrate(_clean(rng, 64, expected), Rate(200), frames=16))
    calls = [c for row in _clean(rng, 40, expected, 2.0) for c in detector.step(row)]
    assert sum(c.level == "alarm" and c.signal == "mmd" for c in calls) == 1
    assert detector.sums()["mmd"] == pytest.approx(1.0 + ALLOWANCES[0])


def test_a_small_lasting_shift_is_seen_by_the_chart_of_the_small_allowance_and_told_once() -> None:
    rng = np.random.default_rng(6)
    detector = Detector(calibrate([{"margin": float(v)} for v in rng.normal(size=384)], Rate(400, 0.1), frames=16))
    found = [c for v in rng.normal(-0.6, 1.0, 200) for c in detector.step({"margin": float(v)}) if c.level == "alarm"]
    slow = float(detector.calibration.alarm[-1])
    assert [(c.signal, c.down, c.threshold) for c in found] == [("margin", True, slow)], "0.6 deviations are below the large allowance"
    detector = Detector(detector.calibration)
    calls = [c for v in rng.normal(-4.0, 1.0, 200) for c in detector.step({"margin": float(v)}) if c.level == "alarm"]
    assert len(calls) == 1, "both charts are over their thresholds, one has told it"

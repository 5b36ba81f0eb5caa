"""PI: angles of scaled positions, and the paper's two bounds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.analyse.pi_bound import (
    bound_report,
    extrapolation_bound,
    interpolation_constant,
)
from posenc_jax.methods.pi import pi_frequencies
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden

GOLDEN = golden('pi')['values']


def test_is_rope_at_positions_divided_by_the_factor():
    x, pos = jax.random.normal(jax.random.key(0), (1, 9, 2, 16)), jnp.arange(9)[None]
    ours = pj.make('rope(freqs=pi(factor=4.0))', head_dim=16).rotate(x, pos)
    np.testing.assert_allclose(ours, rope(x, pos / 4), atol=1e-6)


def test_no_angle_beyond_those_of_the_trained_length():
    trained = 64 * rope_frequencies(16, 10000.0)
    np.testing.assert_allclose(256 * pi_frequencies(16, 10000.0, 4.0), trained)


def test_extrapolation_bound_of_the_paper():
    theta = rope_frequencies(128, 10000.0)
    np.testing.assert_allclose(
        extrapolation_bound(np.array(GOLDEN['distance']), theta), GOLDEN['bound_over_d'], atol=6e-4
    )
    bound = extrapolation_bound(np.arange(1, 4001), theta)
    for reach in (2048, 4000):
        assert bound[:reach].argmin() + 1 == GOLDEN[f'argmin_{reach}']
        assert bound[:reach].min() == pytest.approx(GOLDEN[f'minimum_{reach}'], abs=6e-5)


def test_interpolation_bound_holds_with_the_strict_constant():
    theta = rope_frequencies(128, 10000.0)
    strict = interpolation_constant(theta)
    assert strict == pytest.approx(GOLDEN['strict_constant'], abs=6e-6)
    assert 128 / (8 * np.log(1e4)) == pytest.approx(GOLDEN['paper_constant'], abs=6e-6)
    logit = lambda h, s: (h * np.exp(1j * np.multiply.outer(s, theta))).sum(-1).real
    ones = np.ones(64)
    deviation = abs(logit(ones, 0.5) - (logit(ones, 0.0) + logit(ones, 1.0)) / 2)
    assert deviation == pytest.approx(GOLDEN['deviation'], abs=6e-6)
    assert deviation > GOLDEN['paper_bound']
    assert deviation <= strict / 4
    random = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        h = random.normal(size=64) + 1j * random.normal(size=64)
        start = random.integers(0, 2048)
        part = random.random()
        chord = (1 - part) * logit(h, start) + part * logit(h, start + 1)
        worst = max(
            worst,
            abs(logit(h, start + part) - chord) / (strict * np.abs(h).max() * part * (1 - part)),
        )
    assert 0.01 < worst < 1


def test_the_strict_constant_is_nearly_attained_and_the_papers_holds_without_the_first_plane():
    theta = rope_frequencies(128, 10000.0)
    strict, paper = interpolation_constant(theta), 128 / (8 * np.log(1e4))
    assert ((theta[1:] ** 2).sum(), 2 * paper) == pytest.approx((2.9983, 3.4744), abs=6e-5)
    start = np.random.default_rng(0).integers(0, 2048, 2000)

    def deviation(h, part):
        logit = lambda s: (h * np.exp(1j * s[:, None] * theta)).sum(-1).real
        return np.abs(logit(start + part) - (1 - part) * logit(start) - part * logit(start + 1))

    aligned = np.exp(
        -1j * (start[:, None] + 0.5) * theta
    )  # every plane at its peak in the middle of the interval
    worst = deviation(aligned, 0.5)
    assert (worst <= strict / 4).all()
    assert (worst > 0.97 * strict / 4).all()
    assert (worst > paper / 4).all()
    assert (deviation(aligned * (np.arange(64) > 0), 0.5) <= paper / 4).all()
    random = np.random.default_rng(1)
    h = random.normal(size=(2000, 64)) + 1j * random.normal(size=(2000, 64))
    part = random.random(2000)
    bound = paper * np.abs(h).max(1) * part * (1 - part)
    assert (deviation(h, part) < 0.58 * bound).all()


def test_extrapolation_may_be_six_hundred_times_interpolation():
    interpolation = 128 / (32 * np.log(1e4))  # of max|h|, in the middle of an interval
    assert 128 / interpolation == pytest.approx(294.73, abs=6e-3)
    assert 2 * 128 / interpolation == pytest.approx(589, abs=0.6)
    assert extrapolation_bound(np.arange(1, 2049), rope_frequencies(128, 10000.0)).min() > 1


def test_report_has_both_bounds(tmp_path):
    report = bound_report(longest=100, train_len=32)
    bound = 2 * extrapolation_bound(np.arange(100), rope_frequencies(128, 10000.0))
    ranges = ['0 to 0', '1 to 1', '2 to 3', '4 to 7', '8 to 15', '16 to 31', '32 to 63', '64 to 99']
    assert [row[0] for row in report.rows] == ranges
    assert report.rows[4][1:] == (bound[8:16].max(), bound[8:16].min())
    assert report.rows[-1][1:] == (bound[64:].max(), bound[64:].min())
    between = interpolation_constant(rope_frequencies(128, 10000.0)) / 512
    assert f'at most C / (4 d) = {between:.4g}: from distance 32' in report.text()
    assert f'up to {bound[32:].max() / between:.0f} times' in report.text()
    assert 'from distance' not in bound_report(longest=100).text()  # none beyond the trained length
    pytest.importorskip('matplotlib')
    numbers, picture = report.write(tmp_path)
    found = json.loads(numbers.read_text())
    assert found['interpolation'] == pytest.approx(between, rel=1e-5)
    np.testing.assert_allclose(found['extrapolation'], bound, rtol=1e-5)
    assert picture.read_bytes().startswith(b'\x89PNG')

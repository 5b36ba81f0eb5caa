"""LongRoPE2: critical planes and factors of the paper, both windows, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.methods.longrope import LongRoPE
from posenc_jax.methods.longrope2 import (
    LongRoPE2,
    longrope2_base,
    longrope2_critical_plane,
    longrope2_factors,
)
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden_suite
from tests.methods.models import model_of, read, text

RULE = LongRoPE2(critical=2, tail=(4.0, 5.0), factor=4.0, train_len=8)
SPEC = 'rope(freqs=longrope2(critical=2, tail=(4.0, 5.0), factor=4.0))'


def of_model(function):
    def found(_, name):
        width, base, length = name.split(', ')
        return function(int(width), float(base), int(length))

    return found


test_golden = golden_suite('longrope2') | {
    'models.*.critical': of_model(longrope2_critical_plane),
    'models.*.first': of_model(lambda *model: longrope2_critical_plane(*model, periods=10)),
    'models.*.ntk_base': (
        of_model(lambda _, base, length: longrope2_base(base, length, 131072)),
        {'rtol': 1e-6},
    ),
    'factors': (lambda v: longrope2_factors(25, (64.0,) * 23)[v['planes']], {'rtol': 5e-8}),
}


def test_the_critical_plane_is_the_first_without_a_whole_period():
    for width, base, length in ((96, 1e4, 2048), (128, 5e5, 8192), (16, 100.0, 40)):
        turns = length * rope_frequencies(width, base) / (2 * np.pi)
        critical, first = (longrope2_critical_plane(width, base, length, n) for n in (1, 10))
        assert turns[critical] < 1 <= turns[critical - 1]
        assert turns[first] < 10 and (first == 1 or turns[first - 1] >= 10)
        stretched = rope_frequencies(width, longrope2_base(base, length, 10 * length))
        edge = width / 2 * np.log(length / (2 * np.pi)) / np.log(base)
        same = width / 2 * np.log(10 * length / (2 * np.pi)) / -np.log(stretched[1]) / (width / 2)
        assert edge == pytest.approx(same)
    assert longrope2_critical_plane(8, 1e4, 20, periods=10) == 1  # L is shorter than 20 pi
    assert longrope2_critical_plane(8, 1e4, 10**5) == 5  # all four planes complete a period


def test_before_the_critical_plane_it_is_a_larger_base():
    factors = longrope2_factors(3, (8.0, 9.0, 9.0))
    theta = rope_frequencies(12, 1e4) / factors
    np.testing.assert_allclose(theta[:4], (theta[1] / theta[0]) ** np.arange(4), rtol=1e-12)
    assert factors[0] == 1.0 and factors[3:].tolist() == [8.0, 9.0, 9.0]


def test_short_texts_keep_the_model_and_long_ones_have_longrope():
    lengths = jnp.array([1, 8, 9, 32])
    inv_freq, m = RULE(8, 1e4, lengths)
    beyond = LongRoPE((1.0, 2.0, 4.0, 5.0), 4.0, train_len=8)(8, 1e4)
    theta = rope_frequencies(8, 1e4)
    np.testing.assert_allclose(np.asarray(inv_freq)[:2], [theta, theta], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(inv_freq)[2:], [beyond[0]] * 2, rtol=1e-12)
    np.testing.assert_allclose(m, [1.0, 1.0, beyond[1], beyond[1]], rtol=1e-6)
    assert (RULE.switch, RULE.start, RULE.long) == (8, 0, (1.0, 2.0, 4.0, 5.0))
    assert pj.make(SPEC, head_dim=8, train_len=8).cached == 'raw'


def test_mixed_windows_packed_documents_have_the_frequencies_of_their_own_length():
    """A row of 20 tokens with documents of 8 and 12: the first is read as by the trained model."""
    segment = np.array([[0] * 8 + [1] * 12])
    tok, q = (
        pj.Tokens.of(segment=segment),
        jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, 2, 8)), jnp.float32),
    )
    make = lambda spec: pj.make(spec, head_dim=8, train_len=8)
    project = lambda spec: make(spec).project(q, q, q, tok, tok)[:2]
    mixed, plain = project(SPEC), project('rope()')
    beyond = project('rope(freqs=longrope(long=(1.0, 2.0, 4.0, 5.0), factor=4.0))')
    for ours, short, long in zip(mixed, plain, beyond):
        np.testing.assert_allclose(ours[:, :8], short[:, :8], atol=2e-6)
        np.testing.assert_allclose(ours[:, 8:], long[:, 8:], atol=2e-6)
        assert np.abs(short - long)[:, 9:].max() > 0.1


@pytest.mark.full
def test_generation_past_the_trained_length_is_that_of_whole_passes():
    """The text is computed again where it passes L = 8, so deeper layers are those of the list."""
    model, ids = model_of(SPEC), text(1, 12)
    found = generate(model, ids[:, :6], max_new_tokens=6, temperature=0.0)
    first = lambda n: pj.Tokens.of(valid=np.arange(12)[None] < n)
    for n in range(6, 12):
        ids = ids.at[:, n].set(read(model, ids, first(n))[:, n - 1].argmax(-1))
    assert np.asarray(found)[0, -6:].tolist() == ids[0, 6:].tolist()
    early = [read(model, ids, first(n))[:, :8] for n in (8, 12)]
    assert np.abs(np.subtract(*early)).max() > 1e-4

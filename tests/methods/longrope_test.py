"""LongRoPE: magnitudes, lists by length, first positions, carried-over factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.longrope import LongRoPE, longrope_factors, longrope_temperature
from posenc_jax.methods.rope import Rotary, rope, rope_frequencies
from posenc_jax.methods.yarn import yarn_frequencies
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import draw
from tests.phases import FAR, error, wide, wide_theta
from tests.refusals import refused

GOLDEN = golden('longrope')['values']
LONG, SHORT = (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.5, 2.0)


@pytest.mark.parametrize('factor, train_len, m', GOLDEN['temperature'])
def test_golden_temperature(factor, train_len, m):
    assert longrope_temperature(factor, train_len) == pytest.approx(m, abs=6e-7)
    assert longrope_temperature(1.0, train_len) == 1.0
    assert longrope_temperature(factor, train_len, 'none') == 1.0
    by_yarn = longrope_temperature(factor, train_len, 'yarn')
    assert by_yarn == pytest.approx(0.1 * np.log(factor) + 1)


def rescaled(golden):
    return longrope_factors(golden['initial'], 32.0, 16.0)[golden['planes'].index(33)]


test_golden = golden_suite('longrope', {'rescaled_33': rescaled}, atol=1e-6)


def test_factors_of_the_same_scale_stay():
    initial = GOLDEN['initial']
    np.testing.assert_array_equal(longrope_factors(initial, 32.0, 32.0), initial)


def rotated(options, length):
    x = draw(0, 1, length, 2, 8)
    part = pj.make(f'rope(freqs=longrope({options}, factor=4.0))', head_dim=8, train_len=8)
    tok = pj.Tokens.of(length=length)
    return x, part.project(x, x, x, tok, tok)[1]


@pytest.mark.full_but_one
@pytest.mark.parametrize('length, factors', [(8, SHORT), (9, LONG)])
def test_one_list_serves_the_whole_pass(length, factors):
    _, both = rotated(f'long={LONG}, short={SHORT}', length)
    _, alone = rotated(f'long={factors}', length)
    np.testing.assert_allclose(both, alone, atol=2e-6)


def wide_rule(**options):
    """Rotary encoding of 64 planes whose two lists differ in each but the first, trained at 4096
    tokens, and the lists.
    """
    short, long = np.linspace(1.0, 1.9, 64), np.linspace(1.0, 31.3, 64)
    lists = dict(long=tuple(long.tolist()), short=tuple(short.tolist()))
    rule = LongRoPE(**lists, factor=32.0, train_len=4096, **options)
    return Rotary(freqs=rule, head_dim=128), short, long


@pytest.mark.parametrize('dynamic', [False, True])
def test_phases_are_exact_at_two_million(dynamic):
    """Of either list, and of factors that follow the length, beyond their target too."""
    part, short, long = wide_rule(dynamic=dynamic)
    angles = jax.jit(lambda length: part.angles(jnp.asarray(FAR)[None], length)[0])
    for length in (4096, 4097, 100_000, 2_000_001):
        grown = 1 + (wide(long) - 1) * (length - 4096) / wide(4096 * 31) if dynamic else long
        inv_freq = wide_theta(128, 1e4) / (short if length <= 4096 else grown)
        assert error(angles(jnp.asarray([[length]])), FAR, inv_freq) < 1e-6


@pytest.mark.full
def test_a_logit_across_two_million_tokens_is_exact():
    part, _, long = wide_rule(magnitude=1.0)
    q, k = (draw(seed, 1, 1, 1, 128) / 128**0.25 for seed in range(2))
    turned = lambda x, at: part.rotate(x, jnp.array([[at]]), jnp.array([[2_000_001]]))
    gap = 1_999_997 * wide_theta(128, 1e4) / long
    (a, b), (c, d) = (wide(x).reshape(2, 64) for x in (q, k))
    expected = ((a * c + b * d) * np.cos(gap) + (a * d - b * c) * np.sin(gap)).sum()
    found = (turned(q, 2_000_000) * turned(k, 3)).sum()
    np.testing.assert_allclose(found, float(expected), atol=1e-6)


def test_the_first_positions_are_plain_rope():
    x, ours = rotated(f'long={LONG}, start=3', 12)
    _, without = rotated(f'long={LONG}', 12)
    np.testing.assert_allclose(ours[:, :3], rope(x, jnp.arange(12)[None])[:, :3], atol=1e-6)
    np.testing.assert_array_equal(ours[:, 3:], without[:, 3:])
    assert np.abs(ours - without)[:, :3].max() > 0.1


def test_dynamic_factors_grow_from_one_to_the_whole():
    rule, half = LongRoPE(LONG, factor=4.0, dynamic=True, train_len=8), 1 + (np.array(LONG) - 1) / 2
    inv_freq, _ = rule(8, 1e4, jnp.asarray([4, 8, 20, 32]))
    factors = [np.ones(4), np.ones(4), half, LONG]
    np.testing.assert_allclose(rope_frequencies(8, 1e4) / inv_freq, factors, rtol=1e-6)


@pytest.mark.parametrize('mode, factors', [('short', SHORT), ('long', LONG)])
def test_a_fixed_mode_caches_rotated_keys(mode, factors):
    rule = f'longrope(long={LONG}, short={SHORT}, factor=4.0, mode="{mode}")'
    part = pj.make(f'rope(freqs={rule})', head_dim=8, train_len=8)
    assert part.cached == 'encoded' and not part.uses_length
    np.testing.assert_allclose(part.freqs(8, 1e4)[0], rope_frequencies(8, 1e4) / factors)


def test_yarn_as_factors_is_yarn():
    theta, wanted = rope_frequencies(8, 1e4), yarn_frequencies(8, 1e4, 4.0, 64)
    long = tuple((theta / wanted).tolist())
    np.testing.assert_allclose(LongRoPE(long=long, factor=4.0, train_len=64)(8, 1e4)[0], wanted)


def test_factors_may_descend():
    """Only the search keeps factors ascending."""
    rule = LongRoPE(long=(2.0, 1.0, 1e30), factor=4.0, train_len=8)
    assert rule(6, 1e4)[0][2] < 1e-30


def beyond(**given):
    return lambda: LongRoPE(**{'long': (1.0, 2.0), 'factor': 4.0, 'train_len': 8, **given})


BEYOND = r'.*must be a finite number of 32 bits, .*, got 1e\+39'
test_wrong_calls = refused() | {
    f'a factor of short {BEYOND}': beyond(short=(1.0, 1e39)),
    f'the magnitude {BEYOND}': beyond(magnitude=1e39),
}

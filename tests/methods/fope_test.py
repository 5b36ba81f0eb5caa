"""FoPE: what is kept and drawn, RoPE without noise, and a loop over the definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.extend import extended_spec
from posenc_jax.methods.fope import fope_frequencies, fope_start, fope_turn
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.methods.yarn import YaRN
from posenc_jax.protocol.encoding import Constant
from tests.golden_files import golden, golden_suite
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw
from tests.refusals import refused

KEPT = golden('fope')['kept']
N, K, H, L, TRAIN_LEN = 4, 2, 8, 10, 256
Q, KEYS = draw(0, 1, L, N, H), draw(1, 1, L, K, H)
TOKENS = pj.Tokens.of(length=L)
SHIFTED = pj.Tokens.of(positions=np.arange(L)[None] + 37)


def build(options='', **context):
    sizes = dict(kv_heads=K, head_dim=H, train_len=TRAIN_LEN) | context
    return pj.make(f'fope({options})', rngs=nnx.Rngs(0), **sizes)


def kept_parts():
    return [
        build(head_dim=width, train_len=length)
        for width, length in zip(KEPT['width'], KEPT['train_len'])
    ]


def deviation(case):
    """Of the entries of both matrices; 4,096 draws have it within three percent."""
    sizes = dict(kv_heads=case['heads'], head_dim=case['width'], train_len=case['train_len'])
    part = build(**sizes)
    start = fope_start(*part.of_cos.shape[1:])
    return np.std(np.stack([own[...] - start for own in (part.of_cos, part.of_sin)]))


test_golden = golden_suite(
    'fope',
    {
        'kept.frequencies': lambda: [part.of_cos.shape[1] for part in kept_parts()],
        'kept.columns': lambda: [part.of_cos.shape[2] for part in kept_parts()],
        'noise.deviation': (deviation, {'rtol': 0.05}),
        'turn.paper': lambda row: turned(row),
        'turn.released': lambda row: turned(row, released=True),
    },
)


def turned(row, **how):
    return fope_turn(*(jnp.asarray(row[name]) for name in ('x', 'cos', 'sin')), **how)


def by_pairs(part, pos, released=False, rule=None):
    """The definition, in float64."""
    theta, temperature = rope_frequencies(H, 1e4), 1.0
    kept = theta >= 2 * np.pi / TRAIN_LEN
    if rule is not None:
        theta, temperature = rule(H, 1e4)
    theta = theta[kept]
    vectors = {}
    for name, a in (('q', Q[0]), ('k', KEYS[0])):
        out = np.zeros(a.shape)
        for i, h in np.ndindex(*a.shape[:2]):
            own = h * K // a.shape[1]
            cos = np.ones(H // 2)
            sin = np.full(H // 2, float(released))
            of_cos, of_sin = (np.asarray(m[own], np.float64) for m in (part.of_cos, part.of_sin))
            cos[: of_cos.shape[1]] = np.cos(pos[i] * theta) @ of_cos
            sin[: of_sin.shape[1]] = np.sin(pos[i] * theta) @ of_sin
            x, y = a[i, h, : H // 2], a[i, h, H // 2 :]
            out[i, h] = np.concatenate([x * cos - y * sin, y * cos + x * sin])
        vectors[name] = out
    keys = np.repeat(vectors['k'], N // K, axis=1)
    return temperature**2 * np.einsum('inh,jnh->nij', vectors['q'], keys)[None] / H**0.5


@pytest.mark.parametrize('released', [False, True])
def test_logits_equal_the_definition(released):
    part, pos = build(f'gain=0.6, released={released}'), np.arange(L) + 37
    found = logits(part, Q, KEYS, SHIFTED)
    np.testing.assert_allclose(found, by_pairs(part, pos, released), atol=1e-5)


def test_a_rule_changes_the_frequencies_that_are_left():
    rule = YaRN(factor=8.0, train_len=TRAIN_LEN)
    part, pos = build('freqs=yarn(factor=8.0)'), np.arange(L) + 37
    found = logits(part, Q, KEYS, SHIFTED)
    np.testing.assert_allclose(found, by_pairs(part, pos, rule=rule), atol=1e-5)


def test_interpolation_behind_the_choice_keeps_all_matrices():
    """In front of it, a factor of 100 would leave none of the frequencies. With it, positions 100
    times as far have the logits of the trained ones, with the same matrices.
    """
    part = build()
    longer = pj.extend(part, 'pi(factor=100.0)', train_len=TRAIN_LEN)
    far = pj.Tokens.of(positions=100 * (np.arange(L)[None] + 37))
    np.testing.assert_array_equal(longer.of_sin[...], part.of_sin[...])
    np.testing.assert_allclose(
        logits(longer, Q, KEYS, far), logits(part, Q, KEYS, SHIFTED), atol=2e-5
    )
    np.testing.assert_array_equal(
        logits(build('freqs=pi(factor=100.0)'), Q, KEYS, far), logits(longer, Q, KEYS, far)
    )
    assert extended_spec('fope(gain=0.6)', 'pi(factor=100.0)') == (
        'fope(gain=0.6, freqs=pi(factor=100.0))'
    )


def change(part):
    before, after = (logits(part, Q, KEYS, tok) for tok in (TOKENS, SHIFTED))
    return np.abs(after - before).max()


def test_without_noise_it_is_rope_on_the_fast_pairs():
    """F = M = 2 of 4 pairs turn, so p_rope with half of the frequencies has the same logits."""
    part = build('gain=0.0')
    expected = logits(pj.make('rope(freqs=p_rope(p=0.5))', head_dim=H), Q, KEYS)
    np.testing.assert_allclose(logits(part, Q, KEYS), expected, atol=1e-5)
    assert change(part) < 2e-5


def test_the_released_code_counts_pairs_without_positions_twice():
    still = np.asarray([0, 0, 1, 1] * 2, np.float32)
    q, k = Q * still, KEYS * still
    own, released = (logits(build(f'released={how}'), q, k) for how in (False, True))
    np.testing.assert_allclose(own, logits(pj.make('nope()'), q, k), atol=1e-6)
    np.testing.assert_allclose(released, 2 * own, atol=1e-5)


def test_no_period_is_longer_than_the_trained_length():
    for width, length in ((64, 512), (128, 4096)):
        periods = 2 * np.pi / fope_frequencies(width, 1e4, length)
        assert periods.max() <= length


def test_more_frequencies_than_columns_leave_columns_of_noise():
    """Of heads of width 64 trained at 1024 tokens: 18 frequencies, 16 columns, every second row."""
    start = np.asarray(fope_start(18, 16))
    assert start.sum() == 9 and (start.sum(0)[:9] == 1).all() and not start[:, 9:].any()


def test_matrices_are_drawn_apart_and_trained_if_asked_for():
    part, trained = build(), build('learnable=True')
    assert isinstance(part.of_cos, Constant) and isinstance(trained.of_cos, nnx.Param)
    assert np.abs(part.of_cos[...] - part.of_sin[...]).min() > 0
    assert np.abs(part.of_cos[0] - part.of_cos[1]).min() > 0


test_wrong_calls = refused(
    {
        'do not turn within train_len=6, which are all; the least train_len is 7': lambda: build(
            train_len=6
        ),
        'got head_dim=2; the least is 4': lambda: build(head_dim=2),
        'even and at least 2, got 7': lambda: build(head_dim=7),
        r'do not depend on the current length, got YaRN': lambda: build('freqs=yarn(dynamic=True)'),
        'gain must be at least 0, got -0.1': lambda: build('gain=-0.1'),
        'built for head_dim=8 and 2 key heads, got vectors of width 8 and 4': lambda: logits(
            build(), Q, Q
        ),
        'one position per token': lambda: logits(
            build(), Q, KEYS, pj.Tokens.of(positions=np.zeros((1, L, 2)))
        ),
    }
)

"""Selective RoPE: its temperatures, RoPE at equal increments, and the definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.selective_rope import (
    selective_rope_increments,
    selective_rope_temperatures,
    selective_rope_units,
)
from tests.golden_files import golden_suite
from tests.methods.from_input import draw_inputs
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw
from tests.refusals import refused

N, K, H, D, L = 4, 2, 8, 12, 14
INPUTS = draw_inputs((1, N, K, H, D), L)
TOLERANCE = 2e-5  # phases of some 20 rad in float32
OPTIONS = [
    '',
    'bias=True, gate="head"',
    'temperature="rfa", theta=0.8',
    'skip_conv=True',
    'rank=None, gate="low_rank", gate_rank=3',
    'gate="channel", gate_rank=3',
]


def build(options='', *, moved=True, **context):
    sizes = dict(heads=N, head_dim=H, model_dim=D) | context
    arguments = options if 'rank=None' in options else f'rank=6, {options}'.removesuffix(', ')
    part = pj.make(f'selective_rope({arguments})', rngs=nnx.Rngs(0), **sizes)
    if moved:
        of_size = part.up if part.maps is None else part.scale
        of_size[...] *= 8.0
    return part


def convolved(case):
    rows = jnp.asarray([0.0, 0.0, 0.0, *case['rows']])[None, :, None, None]
    taps = jnp.asarray(case['taps'])[:, None, None]
    return selective_rope_increments(rows, taps, pj.Tokens.of(segment=[case['documents']])).ravel()


test_golden = golden_suite(
    'selective_rope',
    {
        'temperatures.*': lambda _, kind: selective_rope_temperatures(4, kind),
        'convolution.increments': convolved,
    },
    atol=5e-8,
)


def angles_by_definition(part):
    """Running sums [L, N, F] of one text, in float64."""
    read = lambda variable: np.asarray(variable[...], np.float64)
    x = np.asarray(INPUTS[3][0], np.float64).reshape(L, N, D // N)
    unit = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)).reshape(L, D)
    if part.maps is None:
        phi = np.einsum('sr,rnf->snf', unit @ read(part.down), read(part.up))
    else:
        phi = np.zeros((L, N, H // 2))
        for h, plane in np.ndindex(N, H // 2):
            column = read(part.maps)[h, :, plane]
            own = unit.reshape(L, N, D // N)[:, h]
            phi[:, h, plane] = read(part.scale)[h] * own @ column / np.sqrt(column @ column)
    out = np.zeros_like(phi)
    for i in range(L):
        for back in range(min(4, i + 1)):
            out[i] += phi[i - back] * read(part.taps)[3 - back]
    if part.beta is not None:
        out += np.exp(read(part.beta))
    if part.gate_kernel is not None:
        rows = unit if part.gate_down is None else unit @ read(part.gate_down)
        gate = np.einsum('sd,d...->s...', rows, read(part.gate_kernel)) + read(part.gate_bias)
        out *= 1 / (1 + np.exp(-gate.reshape(L, N, -1)))
    tau = 500000.0 ** (-np.arange(H // 2) / (H // 2))
    if part.temperature == 'rfa':
        tau = np.tan(np.linspace(0, 0.8 * np.pi, H // 2) / 2) / np.tan(0.4 * np.pi)
    return np.cumsum(out * tau, axis=0)


@pytest.mark.parametrize('options', OPTIONS)
def test_logits_equal_the_definition(options):
    part, (q, k, _, x) = build(options), INPUTS
    angles = angles_by_definition(part)
    complex_ = lambda a: np.asarray(a, np.float64)[..., : H // 2] + 1j * a[..., H // 2 :]
    of_q, of_k = complex_(q[0]), np.repeat(complex_(k[0]), N // K, axis=1)
    turn = np.exp(1j * angles)
    expected = np.einsum('inf,jnf->nij', of_q * turn, (of_k * turn).conj()).real / H**0.5
    found = logits(part, q, k, None, x)[0]
    np.testing.assert_allclose(np.tril(found), np.tril(expected), atol=TOLERANCE)
    assert np.abs(angles[-1]).max() > 1


def test_equal_increments_are_rope():
    """exp(0) = 1 is what the bias adds; the taps take the rest away."""
    part, (q, k, _, x) = build('bias=True'), INPUTS
    part.taps[...] *= 0.0
    expected = logits(pj.make('rope(base=500000.0)', head_dim=H), q, jnp.repeat(k, 2, axis=2))
    found = logits(part, q, k, None, x)
    np.testing.assert_allclose(np.tril(found), np.tril(expected), atol=TOLERANCE)


def test_a_map_of_full_rank_has_columns_of_length_one():
    """So the size of a column does not count, and the angles grow with the number of the head. A
    head reads its own slice alone.
    """
    part, x, tok = build('rank=None'), INPUTS[3], pj.Tokens.of(length=L)
    rows = lambda x: jnp.pad(x, ((0, 0), (3, 0), (0, 0)))
    before = part.increments(rows(x), tok)
    np.testing.assert_allclose(
        part.increments(rows(x.at[..., : D // N].set(1.0)), tok)[:, :, 1:], before[:, :, 1:]
    )
    part.maps[...] *= jnp.arange(1.0, H // 2 + 1)
    np.testing.assert_allclose(part.increments(rows(x), tok), before, atol=1e-5)
    part.scale[...] *= jnp.arange(N)
    np.testing.assert_allclose(
        part.increments(rows(x), tok), before * jnp.arange(N)[:, None], atol=1e-5
    )


def test_without_the_convolution_only_query_and_key_count():
    part, (q, k, _, x), token = build('skip_conv=True'), INPUTS, 6
    before, after = (logits(part, q, k, None, a) for a in (x, x.at[:, token].multiply(-1.0)))
    i, j = np.mgrid[:L, :L]
    changed = np.abs(after - before).max(axis=(0, 1))
    own = (i == token) ^ (j == token)
    assert changed[(j <= i) & ~own].max() < TOLERANCE and changed[(j <= i) & own].min() > 1e-3


def test_the_size_of_the_input_does_not_count():
    x = jnp.asarray(draw(4, 1, 3, D))
    np.testing.assert_allclose(
        selective_rope_units(50.0 * x, N), selective_rope_units(x, N), atol=1e-5
    )
    np.testing.assert_array_equal(selective_rope_units(0 * x, N), 0.0)


def test_a_logit_depends_on_the_tokens_that_the_path_from_key_to_query_reads():
    """A token moves the increments of itself and of the three tokens behind it."""
    part, (q, k, _, x), token = build(), INPUTS, 6
    before, after = (logits(part, q, k, None, a) for a in (x, x.at[:, token].multiply(-1.0)))
    i, j = np.mgrid[:L, :L]
    crossed = (j < i) & (i >= token) & (j < token + 3)
    changed = np.abs(after - before).max(axis=(0, 1))
    assert changed[(j <= i) & ~crossed].max() < TOLERANCE
    assert changed[(j < token) & (i > token + 2)].min() > 1e-3


test_wrong_calls = refused(
    {
        '3 tokens before: 14 keys, input: none': lambda: logits(build(), *INPUTS[:2]),
        '3 tokens before: 14 keys, input: 8 tokens': lambda: logits(
            build(), *INPUTS[:2], None, INPUTS[3][:, :5]
        ),
        'heads must be at least 1 and a divisor of model_dim=10': lambda: build(model_dim=10),
        'theta must be above 0|theta must be positive and below 1': lambda: build(
            'temperature="rfa", theta=1.0'
        ),
        "theta belongs to temperature='rfa', got theta=0.8 with temperature='rope'": lambda: build(
            'theta=0.8'
        ),
        "base belongs to temperature='rope', got base=500000.0 with temperature='rfa'": lambda: (
            build('temperature="rfa", base=500000.0')
        ),
        "temperature='rff' is not one of 'rope', 'rfa'": lambda: build('temperature="rff"'),
        "gate='heads' is not one of 'none', 'head', 'low_rank', 'channel'": lambda: build(
            'gate="heads"'
        ),
        'even and at least 2, got 7': lambda: build(head_dim=7),
    }
)

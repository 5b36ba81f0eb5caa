"""Transformer-XL: closed forms, an explicit reference that builds R_d, limits, far positions,
decoding in the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.transformer_xl import transformer_xl_frequencies, transformer_xl_table
from tests.golden_files import golden_suite
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 2e-5  # float32 inner products of width 12


def build(options='', *, std=0.5, **context):
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    arguments = ', '.join(filter(None, [options, f'std={std}']))
    return pj.make(f'transformer_xl({arguments})', causal=True, rngs=nnx.Rngs(0), **sizes)


def inputs(length=L, seed=3):
    return draw_inputs((B, N, K, H, D), length, seed)


def reference(part, q, k, v, x):
    """The definition, with R_d of shape [T, S, D] in float64 before it is used."""
    distance = np.arange(L)[:, None] - np.arange(L)[None]
    if part.clamp_len is not None:
        distance = np.minimum(distance, part.clamp_len)
    angle = distance[..., None] * part.base ** (-2 * np.arange(D // 2) / D)
    table = jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1), jnp.float32)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    r = jnp.einsum('ijd,dnh->ijnh', table, part.kernel[...])
    s = jnp.einsum('bihd,bjhd->bhij', q + part.u[...], repeat(k))
    s += jnp.einsum('bihd,ijhd->bhij', q + part.v[...], r)
    w = jax.nn.softmax(jnp.where(distance >= 0, s / H**0.5, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', w, repeat(v))


def last_row(values):
    """The weights of the last query, which are the same far out and in blocks of several sizes."""
    encoding = build(heads=1, kv_heads=1, head_dim=1, model_dim=2)
    part, zero = encoding.parts[0], jnp.zeros((1, 4, 1, 1))
    part.u[...], part.v[...] = jnp.full((1, 1), 5.0), jnp.ones((1, 1))
    part.kernel[...] = jnp.array([1.0, 0.0]).reshape(2, 1, 1)
    arrays = zero, zero, jnp.eye(4)[None, :, None], jnp.zeros((1, 4, 2))
    at = lambda shift: pj.Tokens.of(positions=jnp.arange(4)[None] + shift)
    rows = [
        run(encoding, *arrays, at(shift), block=block)[0, 3, 0]
        for block in (4, 1, 3)
        for shift in (0, 1_000_000)
    ]
    np.testing.assert_allclose(rows, [values['probabilities']] * 6, atol=1e-6)
    return rows[0]


def table(case):
    theta = transformer_xl_frequencies(4)
    return transformer_xl_table(jnp.array([case['distance']]), theta)[0]


ROWS = {'table.R': (table, {'atol': 1e-7}), 'probabilities': (last_row, {'atol': 1e-6})}
test_golden = golden_suite('transformer_xl', ROWS)


@pytest.mark.parametrize('options', ['clamp_len=6', 'clamp_len=0', 'base=50.0'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    check_values_and_gradients(
        build(options), inputs(), lambda e, *a: reference(e.parts[0], *a), TOLERANCE
    )


@pytest.mark.parametrize('options', ['', 'clamp_len=6'])
def test_only_distances_count_also_far_out(options):
    encoding, arrays = build(options), inputs()
    near = run(encoding, *arrays, pj.Tokens.of(length=L))
    far = run(encoding, *arrays, pj.Tokens.of(positions=jnp.arange(L)[None] + 50_000_000))
    np.testing.assert_allclose(far, near, atol=TOLERANCE)


def test_positions_of_its_own_for_every_row():
    encoding, arrays = build(), inputs()
    shifts = jnp.array([[0], [40]])
    out = run(encoding, *arrays, pj.Tokens.of(positions=jnp.arange(L)[None] + shifts), block=(8, 5))
    np.testing.assert_allclose(out, run(encoding, *arrays, pj.Tokens.of(length=L)), atol=TOLERANCE)

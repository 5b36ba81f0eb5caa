"""Point Transformer's bias: units by hand, attention pair by pair in float64, shifted clouds, and
what is left of a linear network.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.point_transformer_bias import point_transformer_bias_units
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, qkv
from tests.refusals import refused

N, K, H, LENGTH = 4, 2, 8, 11
POINTS = draw(7, 1, LENGTH, 3)
TOK, INPUTS = pj.Tokens.of(positions=POINTS), qkv(LENGTH, N, K, H)


def make(arguments='', heads=N):
    """With random weights of order one."""
    spec = f'point_transformer_bias({arguments})'
    part = pj.make(spec, heads=heads, head_dim=H, rngs=nnx.Rngs(0))
    for number, param in enumerate((part.w1, part.b1, part.w2, part.w_values)):
        if param is not None:
            param[...] = jnp.asarray(draw(number, *param.shape))
    return part


def units(golden):
    points = jnp.array([[golden['first'], golden['second']]])
    return point_transformer_bias_units(
        points, points, jnp.array(golden['w1']), jnp.array(golden['b1'])
    )[0]


test_golden = golden_suite('point_transformer_bias', {'units': units}, atol=1e-6)


def reference(part, points):
    """The whole formula pair by pair, float64."""
    q, k, v = (np.float64(a[0]) for a in INPUTS)
    k, v = k.repeat(N // K, 1), v.repeat(N // K, 1)
    w1, b1, w2 = (np.float64(param[...]) for param in (part.w1, part.b1, part.w2))
    s = np.zeros((N, LENGTH, LENGTH))
    values = np.zeros((LENGTH, LENGTH, N, H))
    for i in range(LENGTH):
        for j in range(LENGTH):
            z = np.maximum(w1 @ (np.float64(points[i]) - points[j]) + b1, 0)
            s[:, i, j] = (q[i] * k[j]).sum(-1) / H**0.5 + w2 @ z
            values[i, j] = v[j]
            if part.w_values is not None:
                values[i, j] += np.einsum('nuh,u->nh', np.float64(part.w_values[...]), z)
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum('nts,tsnh->tnh', w / w.sum(-1, keepdims=True), values)


@pytest.mark.full_but_one
@pytest.mark.parametrize('arguments', ['', 'hidden=5', 'values=False'])
def test_attention_pair_by_pair(arguments):
    part = make(arguments)
    expected = reference(part, POINTS[0])
    for block in (None, (4, 5)):
        found = attend(part, *INPUTS, TOK, block=block)[0]
        np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_shifted_cloud_is_the_same_cloud():
    part, far = make(), POINTS + np.float32([1.0, -2.0, 3.0])
    found = attend(part, *INPUTS, pj.Tokens.of(positions=far))
    np.testing.assert_allclose(found, attend(part, *INPUTS, TOK), atol=2e-5)
    # A cloud that is turned is another one.
    turned = attend(part, *INPUTS, pj.Tokens.of(positions=POINTS[..., ::-1].copy()))
    assert np.abs(turned - found).max() > 0.1


def test_without_last_layers_there_are_no_positions():
    part = make()
    part.w2[...], part.w_values[...] = 0 * part.w2[...], 0 * part.w_values[...]
    plain = attend(pj.make('nope()'), *INPUTS, TOK)
    np.testing.assert_allclose(attend(part, *INPUTS, TOK), plain, atol=1e-6)


def test_of_a_linear_network_the_place_of_the_query_cancels():
    """With b1 so large that no unit is cut the bias is a . (p_i - p_j) and a constant; the softmax
    keeps a . (-p_j), so all queries may be at one place.
    """
    part = make('values=False')
    part.b1[...] = jnp.full(3, 50.0)
    logits = lambda tq: part.logits(jnp.zeros((1, N, LENGTH, LENGTH)), *INPUTS[:2], tq, TOK, 1, ())
    near = np.asarray(logits(TOK)[0], np.float64)
    far = np.asarray(logits(pj.Tokens.of(positions=0 * POINTS))[0], np.float64)
    apart = near - far
    np.testing.assert_allclose(apart, apart[..., :1] + 0 * apart, atol=2e-4)
    assert np.abs(apart).max() > 0.1


def test_doors():
    assert make().opens('collect') and not make('values=False').opens('collect')
    assert make('values=False').w_values is None


test_wrong_calls = refused() | {
    r'point_transformer_bias\(components=3\) needs positions \[B, L, 3\]': lambda: attend(
        make(), *INPUTS
    ),
    r'components=2\) needs positions': lambda: attend(make('components=2'), *INPUTS, TOK),
    'parameters of 4 heads, the queries have 2': lambda: attend(make(), *qkv(LENGTH, 2), TOK),
    'hidden must be at least 1': lambda: make('hidden=0'),
}

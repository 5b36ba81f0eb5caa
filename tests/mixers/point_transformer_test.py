"""Point Transformer: weights and neighbours by hand, the layer point by point in float64, and
clouds that are shifted, reordered, padded and packed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.mixers import point_transformer as module
from tests.golden_files import golden, golden_suite
from tests.mixers.small import OF_POINTS, assert_all_learn, draw, make, model_of, whole
from tests.refusals import refused

GOLDEN = golden('point_transformer')['values']
LENGTH, WIDTH = 9, 8
POINTS, X = draw(1, 2, LENGTH, 3), draw(2, 2, LENGTH, WIDTH)
LAYER = 'point_transformer(neighbours=4, share=4)'


def one_weight():
    k = jnp.array([[[[np.log(3.0), 0.0], [0.0, 0.0]]]])
    v, delta = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]]), jnp.array([[[[0.0, 0.0], [0.0, 2.0]]]])
    q, there = jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2), bool)
    return module.point_transformer_attention(q, k, v, delta, there, lambda h: h[..., :1])[0, 0]


def two_weights():
    """Logits ln 3 and 0 of the first weight, 0 and ln 3 of the second; the first value is one."""
    logits = np.log(3.0) * jnp.eye(2)[None, None]
    zeros = jnp.zeros((1, 1, 2, 4))
    v, there = zeros.at[:, :, 0].set(1.0), jnp.ones((1, 1, 2), bool)
    return module.point_transformer_attention(
        jnp.zeros((1, 1, 4)), zeros, v, zeros, there, lambda h: logits
    )[0, 0]


def nearest(golden):
    return module.point_transformer_neighbours(
        pj.Tokens.of(positions=[[[x] for x in golden['line']]]), 3
    )[0][0]


test_golden = golden_suite('point_transformer', atol=1e-6) | {
    'one_weight': one_weight,
    'two_weights': two_weights,
    'nearest': nearest,
}


def one_by_one(mixer, x, points):
    """The layer for one cloud, point by point, float64."""
    read = lambda name: np.float64(getattr(mixer, name)[...])
    q, k, v = (x @ read(f'w_{name}') + read(f'b_{name}') for name in 'qkv')
    relu = lambda a: np.maximum(a, 0)
    out = np.zeros_like(q)
    for i in range(len(x)):
        distance = ((points - points[i]) ** 2).sum(-1)
        near = np.argsort(distance, kind='stable')[: mixer.neighbours]
        logits, values = [], []
        for j in near:
            delta = relu((points[i] - points[j]) @ read('v1') + read('c1')) @ read('v2')
            delta = delta + read('c2')
            h = relu(read('factor') * (k[j] - q[i] + delta) + read('shift'))
            logits.append(relu(h @ read('g1') + read('d1')) @ read('g2'))
            values.append(v[j] + delta)
        w = np.exp(np.array(logits) - np.max(logits, axis=0))
        w = w / w.sum(0)
        for channel in range(q.shape[1]):
            of_channel = w[:, channel % w.shape[1]]
            out[i, channel] = (of_channel * np.array(values)[:, channel]).sum()
    return out @ read('w_out')


def test_the_layer_point_by_point():
    mixer = make(LAYER)
    assert mixer.g1.shape == (WIDTH, WIDTH // 4)
    found = whole(mixer, X, pj.Tokens.of(positions=POINTS))
    for row in range(2):
        expected = one_by_one(mixer, np.float64(X[row]), np.float64(POINTS[row]))
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_neither_a_shift_nor_the_order_of_points_matters():
    mixer, order = make(LAYER), np.random.default_rng(0).permutation(LENGTH)
    found = whole(mixer, X, pj.Tokens.of(positions=POINTS))
    shifted = whole(mixer, X, pj.Tokens.of(positions=POINTS + np.float32([1, -2, 3])))
    np.testing.assert_allclose(shifted, found, atol=1e-4)
    mixed = whole(mixer, X[:, order], pj.Tokens.of(positions=POINTS[:, order]))
    np.testing.assert_allclose(mixed, found[:, order], atol=1e-5)
    turned = whole(mixer, X, pj.Tokens.of(positions=POINTS[..., ::-1].copy()))
    assert np.abs(turned - found).max() > 0.1


def test_only_neighbours_matter():
    """A point far away, which is in no other neighbourhood, changes its own result alone."""
    mixer, points, other = make(LAYER), POINTS.copy(), X.copy()
    points[:, 0] += 100
    other[:, 0] += 1
    tok = pj.Tokens.of(positions=points)
    change = np.abs(whole(mixer, other, tok) - whole(mixer, X, tok)).max(-1)
    np.testing.assert_array_equal(change[:, 1:], 0)
    assert change[:, 0].min() > 1e-3


def test_padding_and_packed_clouds():
    """Of three points, two and padding, each cloud has fewer points than neighbours."""
    mixer = make(LAYER)
    clouds = (0, 3), (3, 5)
    segment, valid = np.array([[0, 0, 0, 1, 1, 2]]), np.array([[True] * 5 + [False]])
    x, points = X[:1, :6].copy(), POINTS[:1, :6].copy()
    x[:, 5], points[:, 5] = 1e3, points[:, 4]
    packed = whole(mixer, x, pj.Tokens.of(positions=points, segment=segment, valid=valid))
    assert np.isfinite(packed).all()
    for first, last in clouds:
        alone = pj.Tokens.of(positions=points[:, first:last])
        expected = whole(mixer, x[:, first:last], alone)
        np.testing.assert_allclose(packed[:, first:last], expected, atol=1e-5)


def test_every_parameter_learns():
    mixer, tok = make(LAYER), pj.Tokens.of(positions=POINTS)
    graphdef, params = nnx.split(mixer, nnx.Param)
    loss = lambda params: (nnx.merge(graphdef, params).whole(jnp.asarray(X), tok) ** 2).sum()
    assert_all_learn(jax.jit(jax.grad(loss))(params), 1e-6)


@pytest.mark.full
def test_a_model_of_points():
    model = model_of(LAYER, kind='encoder', **OF_POINTS)
    logits = model(jnp.asarray(POINTS), pj.Tokens.of(positions=POINTS))
    assert logits.shape == (2, 1, 5) and np.isfinite(logits).all()
    low = make(LAYER).whole(jnp.asarray(X, jnp.bfloat16), pj.Tokens.of(positions=POINTS))
    assert low.dtype == jnp.bfloat16
    high = whole(make(LAYER), X, pj.Tokens.of(positions=POINTS))
    assert np.median(np.abs(low - high)) < 0.05


test_wrong_calls = refused() | {
    r'point_transformer\(components=3\) needs positions \[B, L, 3\]': lambda: make(LAYER).whole(
        X, pj.Tokens.of(length=LENGTH)
    ),
    'share must be at least 1 and a divisor of model_dim=8, got 3': lambda: make(
        'point_transformer(share=3)'
    ),
    'neighbours must be at least 1': lambda: make('point_transformer(neighbours=0)'),
}

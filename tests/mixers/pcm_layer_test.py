"""The layer that sorts points: a decaying sum along the orders by hand, no dependence on the order
in which points come, padding, and gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.mixers.pcm_layer import PcmLayer
from tests.golden_files import golden
from tests.mixers.small import (
    OF_POINTS,
    assert_all_learn,
    built,
    model_of,
    normal,
    variables,
    whole,
)

GOLDEN = golden('pcm_layer')['values']
POINTS, X = normal(0, 2, 12, 3), normal(1, 2, 12, 8)
VALID = np.arange(12) < np.array([[12], [7]])


class Halving(RecurrentMixer):
    """`s_i = s_(i-1) / 2 + x_i`, for real tokens."""

    def initial(self, batch):
        return jnp.zeros((batch, 1), jnp.float32)

    def scan(self, x, tok, starts, state):
        out = []
        for place in range(x.shape[1]):
            real = True if tok.valid is None else tok.valid[:, place, None]
            state = jnp.where(real, state / 2 + x[:, place], state)
            out.append(state)
        return jnp.stack(out, axis=1), state


def of_halving(order, prompt=None):
    layer = PcmLayer(
        Halving(), order, prompts=0 if prompt is None else 1, prompt_width=1, model_dim=1,
        layers=1, rngs=nnx.Rngs(0),
    )  # fmt: skip
    if prompt is not None:
        layer.prompts[...], layer.w_prompt[...] = jnp.full((1, 1), prompt), jnp.ones((1, 1))
    x = jnp.array(GOLDEN['x'])[None, :, None]
    return layer.whole(x, pj.Tokens.of(positions=[GOLDEN['points']]))[0, :, 0]


def test_sums_by_hand():
    for order, expected in GOLDEN['without_prompts'].items():
        np.testing.assert_allclose(of_halving(order), expected, rtol=1e-6)
    for order, expected in GOLDEN['with_prompt'].items():
        np.testing.assert_allclose(of_halving(order, 8.0), expected, rtol=1e-6)


@pytest.fixture(scope='module', params=['gru()', 'cheems(chunk=8)'])
def layer(request):
    return built(f'pcm_layer({request.param}, order="yzx", prompts=2, prompt_width=5, size=0.5)')


@pytest.mark.full_but_one
def test_the_order_of_the_points_and_padding_change_nothing(layer):
    tok = pj.Tokens.of(positions=POINTS, valid=VALID)
    found = np.asarray(whole(layer, X, tok))
    order = np.random.default_rng(0).permutation(12)  # padding comes between points too
    moved = pj.Tokens.of(positions=POINTS[:, order], valid=VALID[:, order])
    again = np.asarray(whole(layer, X[:, order], moved))
    np.testing.assert_allclose(again[VALID[:, order]], found[:, order][VALID[:, order]], atol=1e-5)
    alone = whole(layer, X[1:, :7], pj.Tokens.of(positions=POINTS[1:, :7]))
    np.testing.assert_allclose(alone[0], found[1, :7], atol=1e-5)
    other = jnp.where(VALID[..., None], X, 1e3)
    places = jnp.where(VALID[..., None], POINTS, 1e3)
    far = whole(layer, other, pj.Tokens.of(positions=places, valid=VALID))
    np.testing.assert_allclose(far[VALID], found[VALID], atol=1e-5)


def test_every_variable_has_a_gradient_and_padding_has_none(layer):
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    tok = pj.Tokens.of(positions=POINTS, valid=VALID)

    def loss(params, x):
        y = nnx.merge(graphdef, params, rest).whole(x, tok)
        return jnp.where(VALID[..., None], jnp.sin(3 * y), 0).sum()

    ours, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, X)
    assert_all_learn(ours, 1e-7)
    assert np.isfinite(of_x).all() and not np.asarray(of_x)[~VALID].any()
    assert (np.abs(of_x).max(-1)[VALID] > 0).all()


def test_types_and_roles(layer):
    tok = pj.Tokens.of(positions=POINTS, valid=VALID)
    out = jax.eval_shape(layer.whole, X.astype(jnp.bfloat16), tok)
    assert (out.shape, out.dtype) == (X.shape, jnp.bfloat16)
    for variable in variables(layer):
        assert len(variable.get_metadata()['axes']) == variable.get_value().ndim


def test_a_cloud_that_no_grid_holds_gives_nan_alone(layer):
    points = POINTS.at[0, 3, 1].set(1e30)
    found = np.asarray(whole(layer, X, pj.Tokens.of(positions=points)))
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def model(spec):
    first, second = f'pcm() | pcm_layer({spec}, prompts=1)', f'pcm_layer({spec}, order="hilbert")'
    return model_of(first, second, kind='encoder', **OF_POINTS)


logits = jax.jit(lambda model, points, tok: model(points, tok))


def test_a_model_of_such_layers_reads_a_set():
    """One W before every layer, although only the first names `pcm`; any order of the points gives
    the same classes.
    """
    both, order = model('gru()'), np.random.default_rng(4).permutation(12)
    assert [type(part).__name__ for part in both.shared] == ['Pcm']
    found = logits(both, POINTS, pj.Tokens.of(positions=POINTS))
    moved = POINTS[:, order]
    np.testing.assert_allclose(logits(both, moved, pj.Tokens.of(positions=moved)), found, atol=1e-5)
    gradient = nnx.grad(lambda model: (model(POINTS, pj.Tokens.of(positions=POINTS)) ** 2).sum())
    assert np.abs(jax.jit(gradient)(both)['shared'][0]['w_out'][...]).max() > 1e-6

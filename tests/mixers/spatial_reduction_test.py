"""The reduced attention of SegFormer: numbers of another library, limiting cases, and its place in
a model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.mixers.spatial_reduction import SpatialReduction
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden
from tests.mixers.small import OF_IMAGES, model_of

GOLDEN = golden('spatial_reduction')
SIZES = dict(heads=2, kv_heads=2, head_dim=2, model_dim=4, layers=1)
TOK = Tokens.on_grid(2, 4, extra=1)
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 16, 1))


def make(rate=2, **options):
    return SpatialReduction(rate=rate, **options, **SIZES, rngs=nnx.Rngs(0))


of_images = functools.partial(model_of, kind='encoder', **OF_IMAGES)


def mixer_of_golden():
    mixer, own = make(), lambda name, *shape: jnp.array(GOLDEN[name]).reshape(shape)
    mixer.kernel[...], mixer.bias[...] = jnp.array(GOLDEN['kernel']), jnp.array(GOLDEN['bias'])
    mixer.norm.scale[...] = jnp.array(GOLDEN['norm_scale'])
    mixer.norm.bias[...] = jnp.array(GOLDEN['norm_bias'])
    projections = mixer.projections
    for name in 'qkv':
        getattr(projections, f'w_{name}')[...] = own(f'w_{name}', 4, 2, 2)
        getattr(projections, f'b_{name}')[...] = own(f'b_{name}', 2, 2)
    projections.w_out[...], projections.b_out[...] = own('w_o', 2, 2, 4), own('b_o', 4)
    return mixer


def test_the_layer_is_that_of_another_library():
    mixer, x = mixer_of_golden(), jnp.array(GOLDEN['x'])[None]
    read = mixer.keys(x, (2, 4))
    np.testing.assert_array_equal(read[:, :1], x[:, :1])
    np.testing.assert_allclose(read[0, 1:], GOLDEN['reduced'], atol=1e-5)
    np.testing.assert_allclose(mixer.whole(x, TOK)[0], GOLDEN['y'], rtol=1e-4, atol=1e-4)


def test_a_rate_of_one_is_attention_without_positions():
    mixer, x = make(rate=1), jax.random.normal(jax.random.key(1), (2, 9, 4))
    assert not hasattr(mixer, 'kernel') and not hasattr(mixer, 'norm')
    q, k, v = mixer.projections.qkv(x)
    out = mixer.projections.output(jax.nn.dot_product_attention(q, k, v))
    np.testing.assert_allclose(mixer.whole(x, TOK), out, atol=1e-5)


def test_an_anchor_makes_the_keys_those_of_any_shift_of_the_grid():
    cells = jax.random.normal(jax.random.key(2), (1, 4, 6, 4))
    moved = jnp.roll(cells, (1, 3), (1, 2))
    rows = lambda x: x.reshape(1, 24, 4)
    back = lambda y: jnp.roll(y.reshape(1, 4, 6, 4), (-1, -3), (1, 2))
    tok = Tokens.on_grid(4, 6)
    for anchor in (True, False):
        mixer = make(anchor=anchor)
        gap = np.abs(
            back(mixer.whole(rows(moved), tok)) - mixer.whole(rows(cells), tok).reshape(cells.shape)
        )
        assert (gap.max() < 1e-5) == anchor


@pytest.mark.full
def test_in_a_model_and_in_the_stages_of_a_pyramid():
    pattern = of_images('spatial_reduction(rate=2)', 'peg()', mlp='mix_ffn')
    lower = ((1, 4, 1, 2, 'spatial_reduction(rate=4)'), (1, 4, 2, 1, 'spatial_reduction(rate=2)'))
    pyramid = of_images('nope()', lower=lower, mlp='mix_ffn', overlap=True)
    for model in (pattern, pyramid):
        value, gradient = nnx.value_and_grad(lambda model: (model(IMAGES) ** 2).sum())(model)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    mixer = of_images('spatial_reduction(rate=2)', kv_heads=1, bias='none').blocks[0].own_mixer
    assert mixer.projections.w_k.shape == (2, 8, 1, 4) and mixer.kernel.shape == (2, 2, 2, 8, 8)


@pytest.mark.full
@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_recomputed_layers_bfloat16_and_a_mesh_change_nothing():
    spec = 'spatial_reduction(rate=2, anchor=True)'
    model, low = of_images(spec), of_images(spec, dtype='bfloat16')
    run = jax.jit(jax.value_and_grad(lambda model, images: (model(images) ** 2).sum()))
    expected, gradient = run(model, IMAGES)
    assert float(run(of_images(spec, remat='full'), IMAGES)[0]) == pytest.approx(float(expected))
    assert np.abs(jax.jit(low)(IMAGES) - jax.jit(model)(IMAGES)).max() < 0.2
    mesh = make_mesh(2, 2, 2, 1, devices=jax.devices()[:8])
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        cut, other = run(nnx.merge(graphdef, place(params), place(rest)), IMAGES)
    assert float(cut) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

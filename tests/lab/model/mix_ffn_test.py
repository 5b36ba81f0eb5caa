"""Mix-FFN: numbers of another library, limiting cases, and what it tells a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.base.convolution import depthwise
from posenc_jax.lab.model.mix_ffn import MixFFN
from posenc_jax.protocol.registry import entries
from tests.golden_files import golden

GOLDEN = golden('mix_ffn')
WEIGHTS = ('w_in', 'b_in', 'kernel', 'b_conv', 'w_out', 'b_out')


def ffn_of_golden():
    ffn = MixFFN(2, 3, stack=(), rngs=nnx.Rngs(0))
    for name in WEIGHTS:
        getattr(ffn, name)[...] = jnp.array(GOLDEN[name])
    return ffn


def test_the_network_is_that_of_another_library():
    """The tanh form of the gelu would be off by 1e-3."""
    y = ffn_of_golden()(jnp.array(GOLDEN['x'])[None], (2, 3))
    np.testing.assert_allclose(y[0], GOLDEN['y'], atol=2e-5)


def test_with_a_delta_it_is_an_ordinary_network():
    ffn = MixFFN(4, 8, stack=(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(3), (1, 7, 4))
    ffn.kernel[...] = jnp.zeros((3, 3, 8)).at[1, 1].set(1)
    ffn.b_in[...] = jnp.linspace(-1, 1, 8)
    h = x @ ffn.w_in[...] + ffn.b_in[...]
    expected = jax.nn.gelu(h, approximate=False) @ ffn.w_out[...]
    np.testing.assert_allclose(ffn(x, (2, 3)), expected, atol=1e-6)
    # So it does not see the order of the tokens, which it does with another kernel.
    order = jnp.array([0, 3, 1, 6, 2, 5, 4])
    np.testing.assert_allclose(ffn(x[:, order], (2, 3)), expected[:, order], atol=1e-6)
    ffn.kernel[...] = jnp.ones((3, 3, 8))
    assert np.abs(ffn(x[:, order], (2, 3)) - ffn(x, (2, 3))[:, order]).max() > 1e-4


def test_a_constant_meets_four_six_or_nine_entries_of_a_kernel_of_ones():
    out = depthwise(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(out, GOLDEN['counts'])
    torus = depthwise(jnp.ones((1, 3, 4, 1)), jnp.ones((3, 3, 1)), circular=True)
    assert (torus == 9).all()
    ffn, x = MixFFN(2, 3, stack=(), rngs=nnx.Rngs(0)), jnp.ones((1, 12, 2))
    apart = lambda: np.abs(ffn(x, (3, 4)) - ffn(x, (3, 4))[:, :1]).max()
    assert apart() > 1e-5
    ffn.circular = True
    assert apart() < 1e-7


def test_the_weights_start_as_in_the_paper():
    ffn = MixFFN(8, 4000, stack=(), rngs=nnx.Rngs(0))
    assert float(np.std(ffn.kernel[...])) == pytest.approx(GOLDEN['std'], rel=0.02)
    for weights in (ffn.w_in, ffn.w_out):
        assert float(np.std(weights[...])) == pytest.approx(0.02, rel=0.02)
    for bias in (ffn.b_in, ffn.b_conv, ffn.b_out):
        assert not np.asarray(bias[...]).any()


def test_a_grid_is_needed():
    with pytest.raises(ValueError, match="mlp='mix_ffn' convolves over a grid .* use 'gelu'"):
        ffn_of_golden()(jnp.ones((1, 6, 2)), None)
    (entry,) = (entry for entry in entries('mixer') if entry.key == 'mix_ffn')
    assert not entry.is_layer

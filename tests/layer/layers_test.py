"""The pieces of a block against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.layer.layers import dropout, gated_mlp, gelu_mlp, layer_norm, rms_norm
from posenc_jax.layer.mixer import layer_rows

RNG = np.random.default_rng(0)
X, A, B, C = (RNG.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (4, 6), (4, 6), (6, 4)))


def test_norms_are_those_of_numpy():
    scale, bias = RNG.normal(size=4).astype(np.float32), RNG.normal(size=4).astype(np.float32)
    rms = lambda x: np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(X, scale), X / rms(X) * scale, rtol=1e-5)
    centred = X - X.mean(-1, keepdims=True)
    np.testing.assert_allclose(
        layer_norm(X, scale, bias), centred / rms(centred) * scale + bias, atol=1e-5
    )


def test_norms_of_bfloat16_are_computed_in_float32():
    x = (100 + RNG.normal(size=(1, 256))).astype(jnp.bfloat16)
    out = layer_norm(x, jnp.ones(256), jnp.zeros(256))
    assert out.dtype == jnp.bfloat16
    exact = layer_norm(x.astype(jnp.float32), jnp.ones(256), jnp.zeros(256))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_mlps_are_those_of_numpy():
    h = X @ A
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(gelu_mlp(X, A, C), gelu @ C, atol=1e-5)
    gate = X @ B
    np.testing.assert_allclose(
        gated_mlp(X, B, A, C), (gate / (1 + np.exp(-gate)) * h) @ C, atol=1e-5
    )
    np.testing.assert_allclose(gated_mlp(X, A, B, C, kind='geglu'), (gelu * gate) @ C, atol=1e-5)


def test_dropout_drops_the_asked_share_and_keeps_the_mean():
    x = jnp.ones((200, 200))
    out = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert abs((out == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / out.size)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize('lookback', [0, 2])
def test_rows_for_project_have_zeroed_padding_and_zero_rows_in_front(lookback):
    rows = layer_rows(jnp.ones((1, 3, 2)), jnp.array([[False, True, True]]), lookback)
    assert rows[0, :, 0].tolist() == [0.0] * lookback + [0.0, 1.0, 1.0]

"""Deep models without positions: what one causal layer knows of the order of its tokens, what a
second layer adds, models that see later tokens, and the config.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from configs import nope_deep_lm as config_file
from posenc_jax.lab.analyse.nope_deep_lm import nope_deep_lm
from tests.golden_files import golden_suite
from tests.small_models import small_model

L, V = 8, 11
TOKENS = np.random.default_rng(0).integers(V, size=(2, L))


def model(layers, encoding='nope()', kind='decoder'):
    sizes = dict(vocab_size=V, train_len=L, width=16, heads=2, mlp='gelu_erf', norm='layernorm')
    return small_model(**sizes, layers=layers, encoding=encoding, kind=kind, bias='all')


def weights_of_equal_logits(length=5):
    """The only sign of positions in the first layer is the inverse of the place."""
    zero, tok = jnp.zeros((1, length, 1, 1)), pj.Tokens.of(length=length)
    encoding, keys = pj.make('nope()', causal=True), jnp.eye(length)[None, :, None]
    weights = pj.attend(encoding, zero, zero, keys, tok, tok)[0, :, 0]
    assert not np.triu(weights, 1).any()
    return weights


test_golden = golden_suite(
    'nope_deep_lm', {'weights.*': lambda _, i: weights_of_equal_logits()[i, : i + 1]}, atol=1e-6
)


@pytest.mark.parametrize('layers', [2, pytest.param(6, marks=pytest.mark.full)])
def test_one_causal_layer_does_not_know_the_order_and_two_do(layers):
    change = nope_deep_lm(model(layers), TOKENS)
    assert change.shape == (layers,) and change[0] < 1e-6
    assert (change[1:] > 1e-2).all()


@pytest.mark.full
def test_positions_tell_the_first_layer():
    assert nope_deep_lm(model(1, 'sinusoidal()'), TOKENS)[0] > 1e-2
    assert nope_deep_lm(model(1, 'rope()'), TOKENS)[0] > 1e-2


@pytest.mark.full
@pytest.mark.parametrize('layers', [3, 6])
def test_a_model_that_sees_later_tokens_is_equivariant_at_any_depth(layers):
    encoder = model(layers, kind='encoder')
    assert (nope_deep_lm(encoder, TOKENS) < 1e-5).all()
    order = np.random.default_rng(1).permutation(L)
    whole = encoder(jnp.asarray(TOKENS))
    np.testing.assert_allclose(encoder(TOKENS[:, order]), whole[:, order], atol=1e-4)
    assert np.ptp(np.asarray(whole), axis=1).max() > 1e-2


@pytest.mark.full
def test_the_measure_is_zero_without_a_change_and_counts_all_orders():
    same = np.zeros((1, L), int)
    assert (nope_deep_lm(model(2), same) == 0).all()
    few, more = (nope_deep_lm(model(2), TOKENS, orders=n) for n in (1, 3))
    assert few[1] != more[1] and few[1] == nope_deep_lm(model(2), TOKENS, orders=1)[1]


def test_the_config_is_deep_without_positions_and_pre_norm():
    config = config_file.get_config()
    assert config.encoding == 'nope()' and config.model.layers >= 24
    assert (config.model.mlp, config.model.norm) == ('gelu_erf', 'layernorm')
    assert not config.model.parallel and not config.pattern

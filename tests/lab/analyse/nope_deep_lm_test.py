"""Deep models without positions: what one causal layer knows of the order of its tokens, what a
second layer adds, models that see later tokens, and the config.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from configs import nope_deep_lm as config_file
from posenc_jax.lab.analyse.nope_deep_lm import nope_deep_lm
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('nope_deep_lm')['values']
L, V = 8, 11
TOKENS = np.random.default_rng(0).integers(V, size=(2, L))


def model(layers, encoding='nope()', kind='decoder'):
    sizes = dict(vocab_size=V, train_len=L, width=16, heads=2, mlp='gelu_erf', norm='layernorm')
    return small_model(**sizes, layers=layers, encoding=encoding, kind=kind, bias='all')


def test_equal_logits_give_the_inverse_of_the_place():
    """The only sign of positions in the first layer."""
    length = len(GOLDEN['weights'])
    zero, tok = jnp.zeros((1, length, 1, 1)), pj.Tokens.of(length=length)
    encoding, keys = pj.make('nope()', causal=True), jnp.eye(length)[None, :, None]
    weights = pj.attend(encoding, zero, zero, keys, tok, tok)[0, :, 0]
    for i, weight in enumerate(GOLDEN['weights']):
        np.testing.assert_allclose(weights[i, : i + 1], weight, atol=1e-6)
        assert not weights[i, i + 1 :].any()


@pytest.mark.parametrize('layers', [2, pytest.param(6, marks=pytest.mark.full)])
def test_one_causal_layer_does_not_know_the_order_and_two_do(layers):
    change = nope_deep_lm(model(layers), TOKENS)
    assert change.shape == (layers,) and change[0] < 1e-6
    assert (change[1:] > 1e-2).all()


@pytest.mark.full
def test_the_last_logits_under_all_kinds_of_orders():
    one, two = model(1), model(2)
    order = np.array([6, 2, 0, 5, 1, 3, 4, 7])
    for transformer, changes in ((one, False), (two, True)):
        call = jax.jit(lambda m, ids: m(ids)[:, -1])
        gap = np.abs(call(transformer, TOKENS) - call(transformer, TOKENS[:, order])).max()
        assert gap > 1e-2 if changes else gap < 1e-5


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


@pytest.mark.parametrize(
    'tokens, orders, message',
    [
        (TOKENS[:, :2], 4, 'permutes the tokens before the last, got 2 tokens'),
        (TOKENS, 0, 'at least 1 permutation, got 0'),
    ],
)
def test_wrong_values_are_refused(tokens, orders, message):
    with pytest.raises(ValueError, match=message):
        nope_deep_lm(model(1), tokens, orders=orders)

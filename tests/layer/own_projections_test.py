"""Attention for projections of one's own: it computes what `Attention` computes between its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj

WIDTH, HEADS, KV_HEADS, HEAD_DIM, LENGTH = 16, 4, 2, 8, 7
SIZES = dict(width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, train_len=4)
TOLD = dict(
    valid=np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7], bool),
    segment=np.array([[0, 0, 0, 0, 3, 3, 3], [2, 1, 1, 1, 1, 1, 1]]),
)


def encoded(spec):
    """The layer, and the whole `Attention` with the same encoding."""
    whole = pj.Attention(spec, **SIZES, rngs=nnx.Rngs(0))
    own = pj.EncodedAttention(spec, **SIZES, rngs=nnx.Rngs(0))
    nnx.update(own.encoding, nnx.state(whole.encoding))
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
    return own, whole, (x, *whole.projections.qkv(x))


@pytest.mark.parametrize('told', [{}, TOLD], ids=['plain', 'padded and packed'])
@pytest.mark.parametrize(
    'spec', ['rope() | kerple()', 'fox()', 'cope()', 'randomized_pe(max_len=32) | rope()']
)
def test_it_computes_what_the_layer_computes_between_its_projections(spec, told):
    own, whole, arrays = encoded(spec)
    expected = whole(arrays[0], **told)
    found = own(*arrays, pj.Tokens.of(**told) if told else None)
    real = told.get('valid', np.ones((2, LENGTH), bool))
    found = whole.projections.output(found)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


@pytest.mark.parametrize('spec', ['rope() | kerple()', 'fox()', 'rope(freqs=dynamic_ntk())'])
def test_steps_behind_a_cache_are_those_of_the_layer(spec):
    own, whole, arrays = encoded(spec)
    cache, cache_of_whole = own.start(2, LENGTH), whole.start(2, LENGTH)
    step = jax.jit(lambda arrays, cache: own.step(*arrays, cache))
    for first, end in ((0, 4), (4, 5), (5, 7)):
        new = [a[:, first:end] for a in arrays]
        expected, cache_of_whole = whole.step(new[0], cache_of_whole)
        found, cache = step(new, cache)
        np.testing.assert_allclose(whole.projections.output(found), expected, atol=1e-5)
    assert int(cache.cursor) == LENGTH
    with pytest.raises(ValueError, match='EncodedAttention: 1 new tokens do not fit the cache'):
        own.step(*(a[:, :1] for a in arrays), cache)


def test_steps_tell_padding_and_documents():
    own, _, arrays = encoded('rope() | alibi()')
    expected = own(*arrays, pj.Tokens.of(**TOLD))
    cut = lambda a, first, end: a[:, first:end]
    cache, found = own.start(2, LENGTH), []
    for first, end in ((0, 4), (4, 7)):
        told = {name: cut(a, first, end) for name, a in TOLD.items()}
        y, cache = own.step(*(cut(a, first, end) for a in arrays), cache, **told)
        found.append(y)
    real = TOLD['valid']
    np.testing.assert_allclose(jnp.concatenate(found, axis=1)[real], expected[real], atol=1e-5)


def test_tokens_beyond_a_traced_capacity_are_nan():
    own, _, arrays = encoded('rope()')
    step = jax.jit(lambda arrays, cache: own.step(*arrays, cache))
    _, cache = step([a[:, :4] for a in arrays], own.start(2, 5))
    out, _ = step([a[:, 4:] for a in arrays], cache)
    assert jnp.isfinite(out[:, :1]).all() and jnp.isnan(out[:, 1:]).all()


@pytest.mark.parametrize('spec, door', [('sinusoidal()', 'embed'), ('rcmha(max_len=16)', 'qkv')])
def test_an_encoding_that_acts_before_the_projections_is_refused(spec, door):
    with pytest.raises(ValueError, match=f'EncodedAttention: .* acts before .*{door}.*Attention'):
        pj.EncodedAttention(spec, **SIZES, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('number, name', enumerate(('x', 'query', 'key', 'value')))
def test_arrays_of_other_sizes_are_refused(number, name):
    own, _, arrays = encoded('rope()')
    wrong = [a[..., :-1] if i == number else a for i, a in enumerate(arrays)]
    sizes = ', '.join(map(str, arrays[number].shape))
    with pytest.raises(ValueError, match=rf'EncodedAttention: {name} must be floats \[{sizes}\]'):
        own(*wrong)
    with pytest.raises(TypeError, match="no argument 'width_'; did you mean 'width'"):
        pj.EncodedAttention('rope()', width_=8, heads=2, rngs=nnx.Rngs(0))

"""Temperatures without positions: entropies, the curve, where each head's number acts, and tuning
them on a frozen run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.extend import extend, extended_spec
from posenc_jax.methods.nope_temperature import nope_temperature_curve, nope_temperature_entropy
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.methods.models import model_of

SIZES = dict(heads=4, head_dim=8, train_len=8)


def vectors(length=12):
    return tuple(jax.random.normal(jax.random.key(seed), (2, length, 4, 8)) for seed in range(3))


def logits(spec, length=12, **sizes):
    """Scaled logits [B, N, T, S] of random queries and keys, and the causal mask."""
    encoding, tok = pj.make(spec, **{**SIZES, **sizes}), pj.Tokens.of(length=length)
    q, k, _, _, _ = encoding.project(*vectors(length), tok, tok)
    s = scaled_dot_product(*(jnp.swapaxes(a, 1, 2) for a in (q, k)))
    return s, jnp.tril(jnp.ones((length, length), bool))


def entropies_of_zeros(values):
    """The entropies at temperature zero, whatever the logits are; without any key it is 0."""
    length = len(values['uniform'])
    causal = jnp.tril(jnp.ones((length, length), bool))
    s = jax.random.normal(jax.random.key(0), (length, length))
    assert not nope_temperature_entropy(s, causal & False).any()
    return nope_temperature_entropy(0.0 * s, causal)


def entropy_of_two(_, temperature):
    return nope_temperature_entropy(float(temperature) * jnp.log(jnp.array([[1.0, 3.0]])))[0]


test_golden = golden_suite('nope_temperature', rtol=1e-6) | {
    'uniform': (entropies_of_zeros, {'atol': 1e-6}),
    'two_keys.*': (entropy_of_two, {'atol': 1e-6}),
    'curve.*': lambda _, index: nope_temperature_curve(jnp.array([int(index)]), 0.5, 8)[0],
}


@pytest.mark.full
def test_a_higher_temperature_makes_no_row_less_sharp():
    """The claim: what distracts attention among many keys is undone by a temperature above 1."""
    at = lambda t, length=12: nope_temperature_entropy(*logits(f'nope_temperature({t})', length))
    steps = np.diff(np.stack([at(t) for t in (0.01, 0.5, 1.0, 1.2, 1.8, 5.0)]), axis=0)
    assert (steps < 1e-6).all() and (steps[..., 2:] < -1e-4).all()
    last = lambda t, length: float(at(t, length)[..., -1].mean())
    short, plain, sharp = last(1.0, 32), last(1.0, 128), last(1.5, 128)
    assert short < plain and abs(sharp - short) < abs(plain - short)


def test_every_head_has_its_own():
    plain, _ = logits('nope()')
    scaled, _ = logits('nope_temperature((0.5, 1.0, 2.0, 3.0))')
    expected = plain * np.array([0.5, 1.0, 2.0, 3.0])[:, None, None]
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)
    uniform, _ = logits('nope_temperature(1.5)')
    np.testing.assert_allclose(uniform, 1.5 * plain, rtol=1e-5, atol=1e-6)
    curved, _ = logits('nope_temperature(2.0, slope=0.5)')
    expected = 2 * np.asarray(nope_temperature_curve(jnp.arange(12), 0.5, 8))[:, None]
    np.testing.assert_allclose(curved, plain * expected, rtol=1e-5, atol=1e-6)


def test_the_curve_counts_real_tokens_of_a_document():
    segment, valid = np.repeat([[0, 1]], 12, axis=1), np.arange(24)[None] != 3
    tok = pj.Tokens.of(segment=segment, valid=valid, positions=np.arange(24)[None] + 90)
    q = jnp.ones((1, 24, 4, 8))
    scaled, *_ = pj.make('nope_temperature(slope=0.5)', **SIZES).project(q, q, q, tok, tok)
    expected = nope_temperature_curve(jnp.array([*range(3), 2, *range(3, 11), *range(12)]), 0.5, 8)
    np.testing.assert_allclose(scaled[0, :, 0, 0], expected, rtol=1e-6)


def test_trained_temperatures_stay_at_one_or_more_and_can_come_back():
    encoding = pj.make('nope_temperature(1.6, per_head=True)', **SIZES)
    tok = pj.Tokens.of(length=12)
    np.testing.assert_array_equal(encoding.raw[...], jnp.full(4, 1.6))
    encoding.raw[...] = jnp.array([0.2, 1.0, 1.6, -3.0])
    np.testing.assert_allclose(encoding.temperatures(), [1.0, 1.0, 1.6, 1.0], rtol=1e-6)
    gradient = jax.grad(lambda e: e.project(*vectors(), tok, tok)[0].sum())(encoding)
    assert (np.asarray(gradient.raw[...]) != 0).all() and gradient.raw[...].dtype == jnp.float32


@pytest.mark.full
def test_it_takes_the_place_of_nope():
    short = pj.make('nope() | window(size=4)', causal=True)
    longer = extend(short, 'nope_temperature(1.5)', **SIZES)
    assert [name_of(part) for part in parts_of(longer)][:2] == ['nope_temperature', 'window']
    found = extended_spec('nope() | causal()', 'nope_temperature(1.6, per_head=True)')
    assert found == 'nope_temperature(temperature=1.6, per_head=True) | causal()'
    model, tokens = model_of('nope()', vocab_size=7, heads=4), jnp.arange(16)[None] % 7
    np.testing.assert_array_equal(model.extend('nope_temperature(1.0)')(tokens), model(tokens))
    assert np.abs(model.extend('nope_temperature(3.0)')(tokens) - model(tokens)).max() > 1e-3


def test_what_it_does_not_extend():
    message = r'nope_temperature extends one nope; found 0 in rope \| causal'
    with pytest.raises(SpecError, match=message):
        extend(pj.make('rope() | causal()', **SIZES), 'nope_temperature(1.5)', **SIZES)

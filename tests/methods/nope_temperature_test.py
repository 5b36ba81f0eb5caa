"""Temperatures without positions: entropies, the curve, where each head's number acts, and tuning
them on a frozen run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.extend import extend, extended_spec
from posenc_jax.methods.nope_temperature import attention_entropy, nope_temperature_curve
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('nope_temperature')
SIZES = dict(heads=4, head_dim=8, train_len=8)


def vectors(length=12):
    return tuple(jax.random.normal(jax.random.key(seed), (2, length, 4, 8)) for seed in range(3))


def logits(spec, length=12, **sizes):
    """Scaled logits [B, N, T, S] of random queries and keys, and the causal mask."""
    encoding, tok = pj.make(spec, **{**SIZES, **sizes}), pj.Tokens.of(length=length)
    q, k, _, _, _ = encoding.project(*vectors(length), tok, tok)
    return scaled_dot_product(*(jnp.swapaxes(a, 1, 2) for a in (q, k))), jnp.tril(
        jnp.ones((length, length), bool)
    )


def test_entropies_at_temperature_zero():
    length = len(GOLDEN['uniform'])
    causal = jnp.tril(jnp.ones((length, length), bool))
    s = jax.random.normal(jax.random.key(0), (3, length, length))
    np.testing.assert_allclose(
        attention_entropy(0.0 * s, causal), np.tile(GOLDEN['uniform'], (3, 1)), atol=1e-6
    )
    assert attention_entropy(s, causal[:, ::-1] & False).tolist() == np.zeros((3, length)).tolist()


@pytest.mark.parametrize('temperature', GOLDEN['two_keys'])
def test_entropies_of_two_keys(temperature):
    entropy = attention_entropy(float(temperature) * jnp.log(jnp.array([[1.0, 3.0]])))
    np.testing.assert_allclose(entropy, [GOLDEN['two_keys'][temperature]], atol=1e-6)


@pytest.mark.full
def test_a_higher_temperature_makes_no_row_less_sharp():
    """The claim: what distracts attention among many keys is undone by a temperature above 1."""
    entropies = np.stack(
        [
            attention_entropy(*logits(f'nope_temperature({t})'))
            for t in (0.01, 0.5, 1.0, 1.2, 1.8, 5.0)
        ]
    )
    assert (np.diff(entropies, axis=0) < 1e-6).all() and (
        np.diff(entropies, axis=0)[..., 2:] < -1e-4
    ).all()
    short, plain, sharp = (
        float(attention_entropy(*logits(f'nope_temperature({t})', length))[..., -1].mean())
        for t, length in ((1.0, 32), (1.0, 128), (1.5, 128))
    )
    assert short < plain and abs(sharp - short) < abs(plain - short)


def test_at_one_it_is_nope():
    q, k, v = vectors()
    tok = pj.Tokens.of(length=12)
    run = lambda spec: pj.attend(
        pj.make(spec, causal=True, **SIZES),
        *pj.make(spec, **SIZES).project(q, k, v, tok, tok),
        applied=pj.TOKEN_STAGE,
    )
    for spec in (
        'nope_temperature()',
        'nope_temperature(per_head=True)',
        'nope_temperature(slope=0.0)',
    ):
        np.testing.assert_array_equal(run(spec), run('nope()'))


def test_every_head_has_its_own():
    plain, _ = logits('nope()')
    scaled, _ = logits('nope_temperature((0.5, 1.0, 2.0, 3.0))')
    np.testing.assert_allclose(
        scaled, plain * np.array([0.5, 1.0, 2.0, 3.0])[:, None, None], rtol=1e-5, atol=1e-6
    )
    uniform, _ = logits('nope_temperature(1.5)')
    np.testing.assert_allclose(uniform, 1.5 * plain, rtol=1e-5, atol=1e-6)


def test_the_curve():
    index = jnp.array([int(i) for i in GOLDEN['curve']])
    np.testing.assert_allclose(
        nope_temperature_curve(index, 0.5, 8), list(GOLDEN['curve'].values()), rtol=1e-6
    )
    plain, _ = logits('nope()')
    scaled, _ = logits('nope_temperature(2.0, slope=0.5)')
    expected = 2 * np.asarray(nope_temperature_curve(jnp.arange(12), 0.5, 8))[:, None]
    np.testing.assert_allclose(scaled, plain * expected, rtol=1e-5, atol=1e-6)


def test_the_curve_counts_real_tokens_of_a_document():
    segment, valid = np.repeat([[0, 1]], 12, axis=1), np.arange(24)[None] != 3
    tok = pj.Tokens.of(segment=segment, valid=valid, positions=np.arange(24)[None] + 90)
    q = jnp.ones((1, 24, 4, 8))
    scaled, *_ = pj.make('nope_temperature(slope=0.5)', **SIZES).project(q, q, q, tok, tok)
    expected = nope_temperature_curve(jnp.array([*range(3), 2, *range(3, 11), *range(12)]), 0.5, 8)
    np.testing.assert_allclose(scaled[0, :, 0, 0], expected, rtol=1e-6)


@pytest.mark.full
def test_decoding_with_the_curve_is_the_whole_pass():
    spec = 'nope_temperature(1.2, slope=0.5)'
    cfg = TransformerConfig(vocab_size=11, train_len=4, layers=2, width=32, heads=4, encoding=spec)
    model, tokens = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(12)[None] % 11
    empty, step = init_cache(model, pj.Tokens.of(length=12)), jax.jit(decode_step)
    _, cache = jax.jit(prefill)(model, empty, tokens[:, :3])
    for t in range(3, 12):
        last, cache = step(model, cache, tokens[:, t])
    whole = jax.jit(lambda model: model(tokens))(model)
    np.testing.assert_allclose(last, whole[:, -1], atol=2e-5)


def test_trained_temperatures_stay_at_one_or_more_and_can_come_back():
    encoding, tok = (
        pj.make('nope_temperature(1.6, per_head=True)', **SIZES),
        pj.Tokens.of(length=12),
    )
    np.testing.assert_array_equal(encoding.raw[...], jnp.full(4, 1.6))
    encoding.raw[...] = jnp.array([0.2, 1.0, 1.6, -3.0])
    np.testing.assert_allclose(encoding.temperatures(), [1.0, 1.0, 1.6, 1.0], rtol=1e-6)
    gradient = jax.grad(lambda e: e.project(*vectors(), tok, tok)[0].sum())(encoding)
    assert (np.asarray(gradient.raw[...]) != 0).all() and gradient.raw[...].dtype == jnp.float32


@pytest.mark.full
def test_it_takes_the_place_of_nope():
    longer = extend(
        pj.make('nope() | window(size=4)', causal=True), 'nope_temperature(1.5)', **SIZES
    )
    assert [name_of(part) for part in parts_of(longer)][:2] == ['nope_temperature', 'window']
    written = 'nope_temperature(temperature=1.6, per_head=True)'
    assert (
        extended_spec('nope() | causal()', 'nope_temperature(1.6, per_head=True)')
        == f'{written} | causal()'
    )
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=2, width=16, heads=4, encoding='nope()'
    )
    model, tokens = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(16)[None] % 7
    np.testing.assert_array_equal(model.extend('nope_temperature(1.0)')(tokens), model(tokens))
    assert np.abs(model.extend('nope_temperature(3.0)')(tokens) - model(tokens)).max() > 1e-3


@pytest.mark.parametrize(
    'encoding, spec, message',
    [
        ('nope()', 'nope_temperature(0.0)', 'temperature must be positive, got 0.0'),
        ('nope()', 'nope_temperature((1.0, -1.0, 1.0, 1.0))', 'temperature must be positive, got'),
        (
            'nope()',
            'nope_temperature((1.0, 2.0))',
            'temperature must be a tuple of heads=4 entries, got',
        ),
        (
            'nope()',
            'nope_temperature(0.8, per_head=True)',
            'trained temperatures are at least 1, got 0.8',
        ),
        ('nope()', 'nope_temperature(slope=-0.1)', 'slope must be at least 0, got -0.1'),
        (
            'nope()',
            'nope_temperature(slope=0.1, train_len=0)',
            'length in tokens, must be at least 1, got 0',
        ),
        (
            'rope() | causal()',
            'nope_temperature(1.5)',
            r'nope_temperature extends one nope; found 0 in rope \| causal',
        ),
    ],
)
def test_errors(encoding, spec, message):
    with pytest.raises(SpecError, match=message):
        extend(pj.make(encoding, **SIZES), spec, **SIZES)


def test_another_number_of_heads():
    encoding, tok = (
        pj.make('nope_temperature((1.0, 2.0))', heads=2, train_len=8),
        pj.Tokens.of(length=12),
    )
    with pytest.raises(ValueError, match='built for 2 heads, got 4'):
        encoding.project(*vectors(), tok, tok)

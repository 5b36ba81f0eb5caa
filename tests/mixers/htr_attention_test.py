"""Attention of handwriting recognition: the weights by hand and against their definitions, what
positions change, padding, and the encoder-decoder step by step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.mixers import htr_weights as module
from posenc_jax.mixers.encoder_decoder import EncoderDecoder
from posenc_jax.mixers.htr_attention import KINDS, HTRAttention
from tests.golden_files import golden
from tests.mixers.small import assert_all_learn, draw

GOLDEN = golden('htr_attention')['values']
B, S, E, Q = 3, 7, 6, 5
VALID = np.arange(S) < np.array([[7], [4], [1]])
SIZES = dict(width_inside=4, filters=3, taps=3, width=2)


def make(kind='content', positions='none', **more):
    return HTRAttention(Q, E, kind=kind, positions=positions, **SIZES | more, rngs=nnx.Rngs(0))


@jax.jit
def run(attention, e, valid, rows, key=None):
    """Weights [steps, B, S] and contexts."""
    memory = attention.remember(e, valid)

    def step(past, h):
        context, weights, past = attention(h, memory, past)
        return past, (weights[:, 0], context)

    return jax.lax.scan(step, attention.start(*valid.shape, key), rows)[1]


def steps(attention, e, valid=None, key=None, count=3):
    valid = np.ones(e.shape[:2], bool) if valid is None else valid
    rows = np.stack([draw(50 + t, B, Q)[: len(e)] for t in range(count)])
    return tuple(map(np.asarray, run(attention, e, valid, rows, key)))


# The weights.


def test_golden_penalised():
    e, every = jnp.log(jnp.array([GOLDEN['energies_exp']])), jnp.ones((1, 2), bool)
    first, total = module.penalised_weights(e, jnp.zeros((1, 2)), True, every)
    second, _ = module.penalised_weights(e, total, False, every)
    np.testing.assert_allclose(jnp.stack([first[0], second[0]]), GOLDEN['penalised'], atol=1e-6)


def test_golden_walk_and_chunks():
    p, every = jnp.full((1, 3), GOLDEN['probability']), jnp.ones((1, 3), bool)
    first = module.monotonic_weights(p, module.first_key(every), every)
    second = module.monotonic_weights(p, first, every)
    np.testing.assert_allclose(jnp.concatenate([first, second]), GOLDEN['monotonic'], atol=1e-7)
    chunks = module.chunk_weights(first, jnp.zeros((1, 3)), every, GOLDEN['chunks']['width'])
    np.testing.assert_allclose(chunks[0], GOLDEN['chunks']['first'], atol=1e-7)


@pytest.mark.parametrize('size', [1.0, 200.0])
def test_penalised_weights_by_their_definition_in_any_range(size):
    """exp(200) overflows in float32; the definition is evaluated with a shift in float64."""
    energies, total = size * draw(0, 4, B, S), jnp.zeros((B, S))
    for t, e in enumerate(energies):
        found, total = jax.jit(module.penalised_weights)(e, total, t == 0, VALID)
        earlier = np.exp(energies[:t].astype(np.float64)).sum(0) if t else 1.0
        penalised = np.where(VALID, np.exp(e.astype(np.float64)) / earlier, 0)
        expected = penalised / penalised.sum(-1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_walks_by_their_definition():
    p = 1 / (1 + np.exp(-draw(0, B, S)))
    past = np.abs(draw(1, B, S)) * VALID
    expected = np.zeros((B, S))
    for j in range(S):
        for k in range(j + 1):
            expected[:, j] += past[:, k] * np.prod(1 - p[:, k:j].astype(np.float64), axis=1)
    found = jax.jit(module.monotonic_weights)(p, past, VALID)
    np.testing.assert_allclose(found, np.where(VALID, p * expected, 0), atol=1e-6)
    # Probabilities of 0 and 1, where a quotient of products has no value.
    certain = np.zeros((1, 5), np.float32)
    certain[0, 3] = 1
    every = np.ones((1, 5), bool)
    walked = module.monotonic_weights(certain, module.first_key(every), every)
    np.testing.assert_array_equal(walked[0], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(module.monotonic_weights(certain, walked, every), walked)


@pytest.mark.parametrize('width', [1, 3, 9])
def test_chunks_by_their_definition(width):
    stops, u = np.abs(draw(0, B, S)) * VALID, draw(1, B, S)
    expected = np.zeros((B, S))
    for b, k in np.argwhere(VALID):
        chunk = np.arange(max(0, k - width + 1), k + 1)
        shares = np.exp(u[b, chunk].astype(np.float64))
        expected[b, chunk] += stops[b, k] * shares / shares.sum()
    found = jax.jit(module.chunk_weights, static_argnums=3)(stops, u, VALID, width)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if width == 1:
        np.testing.assert_array_equal(found, stops)


def test_filters_are_centred():
    past, filters = draw(0, B, S), draw(1, 5, 2)
    wide = np.pad(past, ((0, 0), (2, 2)))
    expected = sum(wide[:, tap : tap + S, None] * filters[tap] for tap in range(5))
    np.testing.assert_allclose(module.location_features(past, filters), expected, atol=1e-5)


# The attention.


@pytest.mark.parametrize('positions', ['none', 'sinusoid', 'table'])
def test_equal_features_are_told_apart_by_positions_alone(positions):
    e = np.broadcast_to(draw(0, 1, 1, E), (1, S, E))
    weights, contexts = steps(make(positions=positions), e)
    apart = np.ptp(weights, axis=-1).max()
    assert apart < 1e-6 if positions == 'none' else apart > 1e-4
    if positions == 'none':
        np.testing.assert_allclose(weights, 1 / S, atol=1e-6)
        np.testing.assert_allclose(contexts, np.broadcast_to(e[0, 0], contexts.shape), atol=1e-6)


def test_content_and_context_against_numpy():
    attention, e = make(positions='sinusoid'), draw(0, B, S, E)
    weights, contexts = steps(attention, e, VALID)
    get = lambda name: np.asarray(attention.energy[name][...], np.float64)
    angle = np.arange(S)[:, None] * 10000.0 ** (-np.arange(0, E, 2) / E)
    h = e + np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(S, E)
    for t in range(3):
        s = draw(50 + t, B, Q)
        inside = (s @ get('query'))[:, None] + h @ get('key') + get('bias')
        energies = np.where(VALID, np.exp(np.tanh(inside) @ get('w')), 0)
        alpha = energies / energies.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[t], alpha, atol=1e-5)
        np.testing.assert_allclose(contexts[t], np.einsum('bs,bse->be', alpha, h), atol=1e-5)


def test_location_without_u_is_content():
    location, e = make('location'), draw(0, B, S, E)
    content = steps(make(), e)[0]
    assert np.abs(steps(location, e)[0] - content)[1:].max() > 1e-3
    np.testing.assert_allclose(steps(location, e)[0][0], content[0], atol=1e-6)  # no past yet
    location.u[...] = jnp.zeros_like(location.u[...])
    np.testing.assert_allclose(steps(location, e)[0], content, atol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'kind, positions', [*((kind, 'sinusoid') for kind in KINDS), ('content', 'table')]
)
def test_padding_changes_nothing(kind, positions):
    attention, e = make(kind, positions), draw(0, B, S, E)
    found = steps(attention, np.where(VALID[..., None], e, 99.0), VALID)
    assert not found[0][:, ~VALID].any()
    for row, count in ((1, 4), (2, 1)):
        rows = [jnp.asarray(draw(50 + t, B, Q)[row : row + 1]) for t in range(3)]
        alone = run(attention, e[row : row + 1, :count], np.ones((1, count), bool), np.stack(rows))
        np.testing.assert_allclose(found[0][:, row, :count], alone[0][:, 0], atol=1e-5)
        np.testing.assert_allclose(found[1][:, row], alone[1][:, 0], atol=1e-5)


def test_walks_never_turn_back():
    weights = steps(make('monotonic'), draw(0, B, S, E), count=6)[0]
    beyond = np.cumsum(weights, axis=-1)  # how likely it is that a step stops at or before a key
    assert (np.diff(beyond, axis=0) <= 1e-6).all() and (np.diff(beyond, axis=0) < -1e-3).any()


@pytest.mark.parametrize('kind', ['monotonic', 'content'])
def test_noise_in_training_alone(kind):
    e, key = draw(0, B, S, E), jax.random.key(0)
    plain, noisy = steps(make(kind), e)[0], steps(make(kind), e, key=key)[0]
    assert (np.abs(plain - noisy).max() > 1e-3) == (kind == 'monotonic')
    np.testing.assert_array_equal(plain, steps(make(kind, noise=0.0), e, key=key)[0])


@pytest.mark.full_but_one
@pytest.mark.parametrize('kind', KINDS)
def test_every_parameter_gets_a_finite_gradient(kind):
    graphdef, params = nnx.split(make(kind, 'table', max_len=S), nnx.Param)
    rows = np.stack([draw(50 + t, B, Q) for t in range(3)])

    def loss(params):
        _, contexts = run(nnx.merge(graphdef, params), draw(0, B, S, E), VALID, rows)
        return (contexts * draw(9, *contexts.shape)).sum()

    assert_all_learn(jax.grad(loss)(params), 1e-7)


# The encoder-decoder.


def model(kind, positions='none', symbols=11, **sizes):
    other = functools.partial(HTRAttention, kind=kind, positions=positions, **SIZES)
    sizes = dict(embedding=6, hidden=8, both_ways=False, rate=0.0) | sizes
    return EncoderDecoder(symbols, attention=other, rngs=nnx.Rngs(1), **sizes)


@pytest.mark.full
def test_decoding_step_by_step_is_the_whole():
    """The state holds what the next step reads, so steps one by one give the same logits."""
    decoder, rng = model('chunkwise', 'sinusoid'), np.random.default_rng(0)
    source, target = (rng.integers(11, size=(B, n)) for n in (S, 5))
    length = VALID.sum(1)
    whole = jax.jit(lambda m, *text: m(*text))(decoder, source, length, target)
    memory, state = jax.jit(EncoderDecoder.encode)(decoder, source, length)
    step = jax.jit(EncoderDecoder.step)
    for t in range(5):
        logits, weights, state = step(decoder, target[:, t], memory, state)
        np.testing.assert_allclose(logits, whole[:, t], atol=2e-5)
    assert weights.shape == (B, 1, S + 2) and int(state.progress.step) == 5
    assert decoder.generate(source, length, first=1, steps=3).shape == (B, 3)
    # With a key, as in training, the weights of attention are noisy.
    noisy = decoder(source, length, target, key=jax.random.key(0))
    assert np.abs(noisy - whole).max() > 1e-3

"""The encoder-decoder on location attention against NumPy, greedy generation, and dropout."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from posenc_jax.mixers.encoder_decoder import EncoderDecoder, enclose
from tests.mixers.monotonic_location_test import LENGTH, VARIANTS, B, D, E, H, S
from tests.mixers.small import draw, variables

read = jax.jit(lambda model, *text: model(*text))
advance = jax.jit(EncoderDecoder.step)


def test_a_source_stands_between_its_start_and_its_end():
    x, start, end = draw(0, B, S, E), draw(1, E), draw(2, E)
    enclosed = np.asarray(jax.jit(enclose)(x, LENGTH, start, end))
    for row, n, found in zip(x, LENGTH, enclosed):
        np.testing.assert_array_equal(found, [start, *row[:n], end, *np.zeros((S - n, E))])


def redrawn(name, **more):
    """A model whose parameters are all far from zero."""
    sizes = dict(embedding=6, hidden=E, heads=H, head_dim=D)
    model = EncoderDecoder(11, **sizes, rngs=nnx.Rngs(1), **{**VARIANTS[name], **more})
    for number, leaf in enumerate(variables(model)):
        leaf[...] = 0.6 * draw(number, *leaf.shape)
    return model


def reference(model, source, target):
    """Logits of one pair, as the authors' code is described: float64, one sample, one step after
    the other.
    """
    get = lambda module, name: np.asarray(getattr(module, name)[...], np.float64)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    relu = lambda x: np.maximum(x, 0)
    leaky = lambda x: np.where(x > 0, x, 0.01 * x)
    softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()

    def gru(cell, x, h):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (
            np.split(a @ get(cell, f'w_{n}') + get(cell, f'b_{n}'), 3, axis=-1)
            for a, n in ((x, 'x'), (h, 'h'))
        )
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        return (1 - z) * np.tanh(x_n + r * h_n) + z * h

    def stair(x):
        return np.floor(x) + sigmoid(20 * (x - np.floor(x) - 0.5))

    table, attention = get(model, 'table'), model.attention
    words = [get(model, 'start'), *table[source], get(model, 'end')]
    n, spacing = len(words), 1 / (len(words) - 1)
    halves = []
    for cell, order in ((model.forwards, range(n)), (model.backwards, reversed(range(n)))):
        h, states = np.zeros(E // 2), {}
        for j in order:
            h = states[j] = gru(cell, words[j], h)
        halves.append((np.array([states[j] for j in range(n)]), h))
    e, h = (np.concatenate(a, axis=-1) for a in zip(*halves))
    if model.w_gate is not None:
        g = sigmoid(5 * (h @ get(model, 'w_gate') + get(model, 'b_gate')))
        e = g * e + (1 - g) * e[::-1]
    values = (
        leaky(e @ get(attention, 'w_value') + get(attention, 'b_value')) @ get(attention, 'w_head')
    ).reshape(n, H, E)
    past = np.zeros(H)
    hidden = None if attention.first is None else np.tile(get(attention, 'first'), (H, 1))
    logits = []

    for t, token in enumerate(target):
        located = content = None
        if attention.location is not None:
            z = (h @ get(attention, 'w_z') + get(attention, 'b_z')).reshape(H, D)
            if hidden is not None:
                z = hidden = gru(attention.cell, relu(z), hidden)
            located = np.zeros((H, n))
            for head in range(H):
                sigma = (relu(z[head] @ get(attention, 'w_sigma')[head]) + 0.27) / n
                r = z[head] @ get(attention, 'w_rho')[head]
                share = 0 if attention.theta is None else sigmoid(get(attention, 'theta'))
                step = {
                    'onestep': lambda: sigmoid(5 * r[0]),
                    'relu': lambda: relu(r[0]),
                    'free': lambda: r[0],
                    'monoattn': lambda: share * relu(r[0]) + (1 - share) * sigmoid(5 * r[0]),
                    'locattn_sigmoid': lambda: sigmoid(5 * r[0]),
                }.get(attention.location, lambda: stair(r[0]))()
                mu = step * spacing + past[head]
                if attention.location in ('locattn', 'locattn_sigmoid'):
                    mu = step * spacing + sigmoid(r[1]) * past[head] + sigmoid(r[2])
                if attention.location == 'locattn_s' and t == 0:
                    mu += sigmoid(r[1])
                if attention.location.startswith('locattn'):
                    mu = max(0.01 * mu, min(mu, 1 + 0.01 * mu))
                w = np.exp(-((np.arange(n) * spacing - mu) ** 2) / (2 * sigma**2))
                located[head] = w / (w + 1e-20).sum()
        if attention.content is not None:
            content = np.zeros((H, n))
            q = (h @ get(attention, 'w_query')).reshape(H, D)
            k = (e @ get(attention, 'w_key')).reshape(n, H, D)
            for head in range(H):
                for j in range(n):
                    if attention.content == 'plain':
                        content[head, j] = q[head] @ k[j, head]
                    if attention.content == 'relative':
                        angle = (j - t) * 10000.0 ** (-np.arange(0, E, 2) / E)
                        code = (
                            np.stack([np.sin(angle), np.cos(angle)], -1).ravel()
                            @ get(attention, 'w_distance')[:, head]
                        )
                        u, v = get(attention, 'u')[head], get(attention, 'v')[head]
                        content[head, j] = (q[head] + u) @ k[j, head] + (q[head] + v) @ code
                    if attention.content == 'rotary':
                        turn = np.exp(1j * (j - t) * 10000.0 ** (-np.arange(0, D, 2) / D))
                        pairs = lambda a: a[0::2] + 1j * a[1::2]
                        content[head, j] = (
                            pairs(k[j, head]) * turn * pairs(q[head]).conj()
                        ).real.sum()
                content[head] = softmax(content[head] / D**0.5)
        weights = content if located is None else located
        if located is not None and content is not None:
            m = sigmoid(h @ get(attention, 'w_mix') + get(attention, 'b_mix'))
            weights = m * located + (1 - m) * content
        past = (located if attention.position_past else weights) @ (np.arange(n) * spacing)
        context = np.einsum('hs,shq->hq', weights, values).ravel() @ get(attention, 'w_out')
        h = gru(model.cell, np.concatenate([table[token], context]), h)
        logits.append(
            (h @ get(model, 'w_out') + get(model, 'b_out')) @ table.T + get(model, 'bias')
        )
    return np.array(logits)


@pytest.mark.full_where(condition=lambda name: name not in ('locattn', 'mix_past'))
@pytest.mark.parametrize('name', VARIANTS)
def test_the_model_against_numpy(name):
    model = redrawn(name, both_ways=not name.startswith('locattn'))
    source, target = (
        np.random.default_rng(i).integers(11, size=(B, n), dtype=np.int32)
        for i, n in ((0, S), (1, 4))
    )
    full = np.asarray(read(model, source, LENGTH, target))
    expected = [reference(model, source[b, : LENGTH[b]], target[b]) for b in range(B)]
    np.testing.assert_allclose(full, expected, atol=3e-5)
    if name == 'gru':  # it has all that a step passes on
        memory, state = jax.jit(EncoderDecoder.encode)(model, source, LENGTH)
        for t in range(4):
            logits, _, state = advance(model, target[:, t], memory, state)
            np.testing.assert_allclose(logits, full[:, t], atol=2e-5)


def test_generation_is_greedy():
    model = redrawn('relu')
    source = np.random.default_rng(0).integers(11, size=(B, S), dtype=np.int32)
    out = np.asarray(jax.jit(functools.partial(model.generate, first=3, steps=4))(source, LENGTH))
    before = np.concatenate([np.full((B, 1), 3, np.int32), out[:, :-1]], axis=1)
    np.testing.assert_array_equal(read(model, source, LENGTH, before).argmax(-1), out)


@pytest.mark.full
def test_dropout_needs_a_key():
    model = redrawn('onestep', rate=0.5)
    source, target = np.ones((B, S), np.int32), np.ones((B, 2), np.int32)
    call = jax.jit(lambda *text, key=None: model(*text, key=key))
    plain = call(source, LENGTH, target)
    dropped = call(source, LENGTH, target, key=jax.random.key(0))
    np.testing.assert_array_equal(plain, call(source, LENGTH, target))
    assert np.abs(plain - dropped).max() > 1e-3

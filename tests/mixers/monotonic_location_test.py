"""Location attention: the sheet's weights, what each step may do, padding, and the encoder-decoder
against numpy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evidence.experiments import monotonic_location as sweep
from posenc_jax.mixers.encoder_decoder import EncoderDecoder, enclose
from posenc_jax.mixers.gru import GRU
from posenc_jax.mixers.location_weights import (
    GATES,
    STEPS,
    key_positions,
    location_centre,
    location_weights,
    relative_query,
    soft_stair,
    step_size,
)
from posenc_jax.mixers.monotonic_location import MonotonicLocation, mix_directions, reverse_valid
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.mixers.small import draw

GOLDEN = golden('monotonic_location')
VARIANTS = {kind: dict(location=kind) for kind in GATES} | {
    'plain': dict(location=None, content='plain'),
    'relative': dict(location=None, content='relative'),
    'rotary': dict(location=None, content='rotary'),
    'mix': dict(location='onestep', content='relative'),
    'mix_past': dict(location='softstair', content='plain', position_past=True),
    'gru': dict(location='monoattn', gru=True),
}
B, S, E, H, D = 3, 7, 8, 2, 4
LENGTH = np.array([7, 4, 1])
VALID = np.arange(S) < LENGTH[:, None]


def make(name, **more):
    attention = MonotonicLocation(
        E, E, heads=H, head_dim=D, rngs=nnx.Rngs(0), **{**VARIANTS[name], **more}
    )
    for number, leaf in enumerate(
        jax.tree.leaves(nnx.state(attention), is_leaf=lambda a: isinstance(a, nnx.Variable))
    ):
        leaf[...] = leaf[...] + 0.3 * draw(number, *leaf.shape)
    if attention.theta is not None:
        attention.theta[...] = jnp.float32(
            1.0
        )  # at its 20 the gradient of the sigmoid is lost in float32
    return attention


def run(attention, e, valid, steps=4):
    """Weights [steps, B, H, S] and where each step attended on average."""
    return tuple(
        map(
            np.asarray,
            _run(
                attention, e, valid, np.stack([draw(50 + t, 9, E)[: len(e)] for t in range(steps)])
            ),
        )
    )


@jax.jit
def _run(attention, e, valid, rows):
    memory = attention.remember(e, valid)

    def step(progress, h):
        _, weights, progress = attention(h, memory, progress)
        return progress, (weights, progress.past)

    return jax.lax.scan(step, attention.start(len(e)), rows)[1]


centre = jax.jit(location_centre, static_argnums=(0,))
weights_at = jax.jit(location_weights)
read = jax.jit(lambda model, *text: model(*text))
advance = jax.jit(EncoderDecoder.step)


# The formulas.


def test_golden_weights():
    keys, sigma = GOLDEN['keys'], np.full((1, 1), GOLDEN['sigma'], np.float32)
    valid = np.ones((1, keys), bool)
    position, _, length = jax.jit(key_positions)(valid)
    np.testing.assert_allclose(0.27 / length, GOLDEN['sigma'])
    at = lambda r: centre(
        'onestep', np.full((1, 1, 1), r, np.float32), np.zeros((1, 1), np.float32), length, True
    )
    moved, still = (
        np.asarray(weights_at(at(r), sigma, position, valid))[0, 0] for r in (100.0, -100.0)
    )
    np.testing.assert_allclose(moved[1], GOLDEN['one_step'], atol=5e-6)
    np.testing.assert_allclose(
        [moved[0] / moved[1], moved[2] / moved[1]], GOLDEN['neighbour'], rtol=2e-3
    )
    assert moved.argmax() == 1 and still.argmax() == 0 and still[0] > 0.9997


def test_golden_soft_stair():
    golden = GOLDEN['soft_stair']
    *values, at_two = np.asarray(jax.jit(soft_stair)(np.array([*golden['r'], 2.0], np.float32)))
    np.testing.assert_allclose(values, golden['value'], atol=5e-4)
    assert at_two - 2 == pytest.approx(4.5e-5, rel=0.02)


@pytest.mark.parametrize('kind', STEPS)
def test_which_steps_are_monotonic(kind):
    r = np.linspace(-3, 3, 61, dtype=np.float32).reshape(1, 61, 1)
    mu = np.asarray(
        centre(kind, r, np.full((1, 61), 0.4, np.float32), np.array([10]), False, share=0.7)
    )
    assert (mu < 0.4).any() == (kind in ('free', 'softstair'))


@pytest.mark.full
def test_the_share_of_monoattn_starts_as_relu():
    r = jnp.array([0.3, 2.0])
    np.testing.assert_allclose(
        step_size('monoattn', r, jax.nn.sigmoid(20.0)), step_size('relu', r), atol=1e-6
    )
    assert make('monoattn').theta is not None and make('onestep').theta is None


def test_gates_after_dubois():
    r, past, length = np.float32([[[1.2, 0.3, -2.0]]]), np.float32([[0.05]]), np.array([9])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    stair = 1 + sigmoid(20 * (0.2 - 0.5))
    at = lambda kind, first: float(centre(kind, r, past, length, first).item())
    np.testing.assert_allclose(
        at('locattn', False), stair / 8 + sigmoid(0.3) * 0.05 + sigmoid(-2.0), rtol=1e-5
    )
    np.testing.assert_allclose(
        at('locattn_sigmoid', False),
        sigmoid(6.0) / 8 + sigmoid(0.3) * 0.05 + sigmoid(-2.0),
        rtol=1e-5,
    )
    np.testing.assert_allclose(at('locattn_s', False), stair / 8 + 0.05, rtol=1e-5)
    np.testing.assert_allclose(at('locattn_s', True), stair / 8 + 0.05 + sigmoid(0.3), rtol=1e-5)


def test_the_clamp_leaks():
    def at(steps, past):
        return centre(
            'locattn_s', np.float32([[[steps, 0.0]]]), np.float32([[past]]), np.array([2]), False
        ).item()

    np.testing.assert_allclose(at(3.0, 1.0), 1 + 0.01 * (1 + 3 + 4.54e-5), rtol=1e-6)
    np.testing.assert_allclose(at(-8.0, 0.0), -0.08, rtol=1e-4)
    np.testing.assert_allclose(at(0.5, 0.25), 0.75, rtol=1e-6)


def test_weights_that_are_lost_are_zero_with_zero_gradients():
    position, valid = np.float32([[0.0, 0.5, 1.0]]), np.ones((1, 3), bool)
    weights = lambda mu: location_weights(mu.reshape(1, 1), jnp.full((1, 1), 0.09), position, valid)
    at = lambda mu: np.asarray(jitted(mu))
    far, near, jitted = np.float32(3.0), np.float32(0.4), jax.jit(weights)
    assert not at(far).any() and not jax.jit(jax.grad(lambda mu: weights(mu)[0, 0, 1]))(far)
    w = np.exp(-0.5 * ((np.array([0.0, 0.5, 1.0]) - 0.4) / 0.09) ** 2)
    np.testing.assert_allclose(at(near)[0, 0], w / (w.sum() + 3e-20), rtol=1e-5)
    w = np.exp(-0.5 * ((1.0 - 1.86) / 0.09) ** 2)  # about the size of what is added
    np.testing.assert_allclose(at(np.float32(1.86))[0, 0, 2], w / (w + 3e-20), rtol=1e-4)
    assert 0.2 < w / (w + 3e-20) < 0.9


def test_relative_queries_ask_as_transformer_xl():
    q, w, u, v = draw(0, B, H, D), draw(1, E, H, D), draw(2, H, D), draw(3, H, D)
    step, key, number = 5, draw(4, D), 2
    angle = (number - step) * 10000.0 ** (-np.arange(0, E, 2) / E)
    distance = np.stack([np.sin(angle), np.cos(angle)], -1).ravel()
    expected = (q + u) @ key + np.einsum('bhd,qhd,q->bh', q + v, w, distance)
    angle = number * 10000.0 ** (-np.arange(0, E, 2) / E)
    stored = np.concatenate([key, np.stack([np.sin(angle), np.cos(angle)], -1).ravel()])
    np.testing.assert_allclose(
        jax.jit(relative_query)(q, w, u, v, step) @ stored, expected, atol=1e-5
    )


@pytest.mark.parametrize('name', ['relative', 'rotary'])
def test_weights_depend_on_the_distance_to_the_step(name):
    """With the same queries and keys everywhere, step t + 1 sees keys as step t saw those before
    them.
    """
    attention = make(name)

    @jax.jit
    def logits(attention, h, step):
        memory = attention.remember(jnp.ones((1, S, E)), jnp.ones((1, S), bool))
        return attention._logits(h, memory, step)

    first, second = (np.asarray(logits(attention, draw(0, 1, E), step)) for step in (0, 1))
    np.testing.assert_allclose(second[..., 1:], first[..., :-1], atol=1e-5)
    assert np.ptp(first) > 0.1 and attention.start(1).step == 0


# The encodings.


def test_mixing_directions():
    e, mixed = draw(0, B, S, E), jax.jit(mix_directions)
    kept, back = np.where(VALID[..., None], e, 0), jax.jit(reverse_valid)
    np.testing.assert_array_equal(mixed(e, VALID, np.ones(B, np.float32)), kept)
    turned = np.asarray(mixed(e, VALID, np.zeros(B, np.float32)))
    np.testing.assert_array_equal(turned[0], e[0, ::-1])
    np.testing.assert_array_equal(turned[1], np.concatenate([e[1, 3::-1], np.zeros((3, E))]))
    np.testing.assert_array_equal(back(turned, VALID), kept)
    left = np.asarray(back(e, VALID[:, ::-1]))
    np.testing.assert_array_equal(left[1], np.concatenate([np.zeros((3, E)), e[1, :2:-1]]))


def test_golden_gru():
    """torch.nn.GRU over a packed batch, both directions; its bias of the state stands inside the
    product with the reset gate.
    """
    golden, ends = GOLDEN['gru'], []
    x, valid = np.float32(golden['x']), np.arange(4) < np.array(golden['lengths'])[:, None]
    run_gru = jax.jit(GRU.run, static_argnames='reverse')
    for place, direction in enumerate(('forwards', 'backwards')):
        cell, weights = GRU(3, 2, rngs=nnx.Rngs(0)), golden[direction]
        cell.w_x[...] = jnp.array(weights['weight_ih']).T
        cell.w_h[...] = jnp.array(weights['weight_hh']).T
        cell.b_x[...], cell.b_h[...] = jnp.array(weights['bias_ih']), jnp.array(weights['bias_hh'])
        states, last = run_gru(cell, x, valid, reverse=direction == 'backwards')
        np.testing.assert_allclose(
            states, np.array(golden['states'])[..., 2 * place :][..., :2], atol=2e-6
        )
        ends.append(last)
        h = np.zeros((2, 2), np.float32)
        for t in (0, 1) if place == 0 else (1, 0):
            h = cell(h, x[:, t])
        np.testing.assert_allclose(h[1], last[1], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(ends, -1), golden['last'], atol=2e-6)


def test_a_source_stands_between_its_start_and_its_end():
    x, start, end = draw(0, B, S, E), draw(1, E), draw(2, E)
    enclosed = np.asarray(jax.jit(enclose)(x, LENGTH, start, end))
    for row, n, found in zip(x, LENGTH, enclosed):
        np.testing.assert_array_equal(found, [start, *row[:n], end, *np.zeros((S - n, E))])


# Attention.


@pytest.mark.full
def test_padding_gets_nothing_and_changes_nothing():
    attention, e = make('mix'), draw(0, B, S, E)
    weights, past = run(attention, e, VALID)
    assert not weights[..., ~VALID[1]][:, 1].any() and np.isfinite(weights).all()
    assert (weights.sum(-1) < 1 + 1e-5).all()
    other, same = run(attention, np.where(VALID[..., None], e, np.float32(99.0)), VALID)
    np.testing.assert_allclose(other, weights, atol=1e-5)
    np.testing.assert_allclose(same, past, atol=1e-5)
    longer, _ = run(attention, np.pad(e, ((0, 0), (0, 5), (0, 0))), np.pad(VALID, ((0, 0), (0, 5))))
    np.testing.assert_allclose(longer[..., :S], weights, atol=1e-5)


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.full
def test_gradients_are_finite_and_reach_every_parameter(name):
    attention, e = make(name), draw(0, B, S, E)
    graphdef, params = nnx.split(attention)

    def loss(params):
        attention = nnx.merge(graphdef, params)
        memory, progress, total = attention.remember(e, VALID), attention.start(B), 0.0
        for t in range(2):
            context, _, progress = attention(draw(60 + t, B, E), memory, progress)
            total += (context * draw(70 + t, *context.shape)).sum()
        return total

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(
            path
        )


@pytest.mark.parametrize('length', [6, 300])
def test_one_key_per_step_at_any_length(length):
    """The paper's claim: a step is counted in keys, and the window is as narrow in keys, however
    long the source is.
    """
    attention = MonotonicLocation(E, E, head_dim=D, location='onestep', rngs=nnx.Rngs(0))
    attention.w_z[...], attention.b_z[...] = jnp.zeros_like(attention.w_z[...]), jnp.ones(D)
    attention.w_rho[...], attention.w_sigma[...] = (
        jnp.ones((1, D, 1)),
        -jnp.ones((1, D)),
    )  # r = 4, sigma at its floor
    weights, past = run(attention, draw(0, 1, length, E), np.ones((1, length), bool), steps=5)
    np.testing.assert_array_equal(weights[:, 0, 0].argmax(-1), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(past[:, 0, 0] * (length - 1), [1, 2, 3, 4, 5], atol=0.01)


def test_the_mix_lies_between_and_remembers_as_asked():
    attention, e = make('mix'), draw(0, B, S, E)
    attention.w_mix[...] = jnp.zeros_like(attention.w_mix[...])
    results = {}
    for bias in (-50.0, 0.0, 50.0):
        attention.b_mix[...] = jnp.full(1, bias)
        results[bias] = run(attention, e, VALID, steps=1)
    middle = 0.5 * (results[-50.0][0] + results[50.0][0])
    np.testing.assert_allclose(results[0.0][0], middle, atol=1e-6)
    np.testing.assert_allclose(
        results[0.0][1], 0.5 * (results[-50.0][1] + results[50.0][1]), atol=1e-6
    )
    attention.position_past = True
    attention.b_mix[...] = jnp.zeros(1)
    np.testing.assert_allclose(run(attention, e, VALID, steps=1)[1], results[50.0][1], atol=1e-6)


def test_the_gru_remembers():
    attention, e = make('gru'), draw(0, B, S, E)
    start = attention.start(B)
    np.testing.assert_array_equal(start.hidden, np.broadcast_to(attention.first[...], (B, H, D)))
    once = jax.jit(lambda attention, h: attention(h, attention.remember(e, VALID), start)[2])
    z = (draw(1, B, E) @ np.asarray(attention.w_z[...]) + np.asarray(attention.b_z[...])).reshape(
        B, H, D
    )
    expected = jax.jit(lambda cell, *given: cell(*given))(
        attention.cell, start.hidden, np.maximum(z, 0)
    )
    np.testing.assert_allclose(once(attention, draw(1, B, E)).hidden, expected, atol=1e-6)


# The encoder-decoder.


def redrawn(name, **more):
    """A model whose parameters are all far from zero."""
    sizes = dict(embedding=6, hidden=E, heads=H, head_dim=D)
    model = EncoderDecoder(11, **sizes, rngs=nnx.Rngs(1), **{**VARIANTS[name], **more})
    for number, leaf in enumerate(
        jax.tree.leaves(nnx.state(model), is_leaf=lambda a: isinstance(a, nnx.Variable))
    ):
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


@pytest.mark.full_but_one
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


# The sweep.


def test_samples_of_the_sweep():
    task = sweep.TRANSDUCTIONS['recopy']
    source, length, target = sweep.samples_of(task, np.random.default_rng(0), 60, (5, 10))
    assert set(length) == set(range(5, 11))
    assert source.shape == (60, 10)
    assert (target[:, 0] == sweep.START).all()
    for ids, n, wanted in zip(source, length, target):
        assert (ids[:n] >= sweep.WORDS).all() and (ids[n:] == sweep.PADDING).all()
        answer = [task.words[i - sweep.WORDS] for i in wanted[1:] if i != sweep.PADDING]
        assert answer.index('<eos>') == len(answer) - 1
        assert (wanted[1 + len(answer) :] == sweep.PADDING).all()


@pytest.mark.full
def test_every_variant_of_the_sweep_is_a_model():
    for arguments in sweep.VARIANTS.values():
        EncoderDecoder(5, embedding=2, hidden=4, head_dim=4, rngs=nnx.Rngs(0), **arguments)


@pytest.mark.full
def test_the_sweep_trains_and_reports(tmp_path, capsys):
    sweep.main(['--tasks', 'dedupe', '--variants', 'onestep', '--seeds', '0', '3', '--steps', '2',
        '--width', '4',
                '--samples', '2', '--workdir', str(tmp_path)])  # fmt: skip
    lines = (tmp_path / 'results.csv').read_text().splitlines()
    assert len(lines) == 1 + 2 * 7
    assert lines[1].startswith('dedupe,onestep,10,0,')
    assert lines[-1].startswith('dedupe,onestep,100,3,')
    assert 'seed 3' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--tasks', 'recopi'], "did you mean 'recopy'"),
        (['--variants', 'onestp'], "did you mean 'onestep'"),
        (['--steps', '0'], 'a whole number of at least 2, got '),
        (['--steps', 'ten'], "a whole number of at least 2, got 'ten'"),
        (['--dropout', '1'], 'a number of at least 0 and below 1, got '),
        (['--peak', 'nan'], "a number of at least 0, got 'nan'"),
        (['--width', '33'], '--width must be even'),
        (['--workdir', __file__], '--workdir must be a directory'),
        (['--seeds', '-1'], 'at least 0 and below 4294967296, got '),
        (['--batches', '3'], 'unrecognized arguments: --batches'),
    ],
)
def test_the_sweep_refuses_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as refused:
        sweep.main(arguments)
    said = capsys.readouterr().err
    assert refused.value.code == 2 and said.count('\n') == 1 and message in said


# Wrong input.


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(location=None), 'by location'),
        (dict(location='onestp'), "did you mean 'onestep'"),
        (dict(content='relativ'), "did you mean 'relative'"),
        (dict(position_past=True), 'needs location and content'),
        (dict(location=None, content='plain', gru=True), 'needs a location'),
        (dict(content='rotary', head_dim=3), 'head_dim must be even, got 3'),
        (dict(content='relative', query_dim=3), 'query_dim must be even, got 3'),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((ValueError, SpecError), match=message):
        MonotonicLocation(**{'query_dim': E, 'key_dim': E, **arguments}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(hidden=7), 'hidden must be even'),
        (dict(hidden=0), 'at least 2, got 0'),
        (dict(rate=1.0), 'rate of at least 0 and below 1, got'),
    ],
)
def test_errors_of_the_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoder(3, **arguments, rngs=nnx.Rngs(0))

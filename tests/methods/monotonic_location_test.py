"""Location attention: the sheet's weights, what each step may do, padding, and the encoder-decoder step by step."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.sweeps.monotonic_location import END, FIRST, PADDING, START, STRINGS, TABLES, batch_of, copying, looking_up
from posenc_jax.core.registry import SpecError
from posenc_jax.mixers.encoder_decoder import EncoderDecoder, run_gru
from posenc_jax.mixers.monotonic_location import (
    GATES,
    STEPS,
    MonotonicLocation,
    key_positions,
    location_centre,
    location_weights,
    mix_directions,
    relative_logits,
    reverse_valid,
    soft_stair,
    step_size,
)

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'monotonic_location.json').read_text())
VARIANTS = {kind: dict(location=kind) for kind in GATES} | {
    'plain': dict(location=None, content='plain'),
    'relative': dict(location=None, content='relative'),
    'mix': dict(location='onestep', content='relative'),
    'mix_past': dict(location='softstair', content='plain', position_past=True),
    'gru': dict(location='monoattn', gru=True),
}
B, S, E, H, D = 3, 7, 8, 2, 4
VALID = np.arange(S) < np.array([[7], [4], [1]])


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def make(name, **more):
    attention = MonotonicLocation(E, E, heads=H, head_dim=D, rngs=nnx.Rngs(0), **{**VARIANTS[name], **more})
    for number, leaf in enumerate(jax.tree.leaves(nnx.state(attention), is_leaf=lambda a: isinstance(a, nnx.Variable))):
        leaf[...] = leaf[...] + 0.3 * draw(number, *leaf.shape)
    if attention.theta is not None:
        attention.theta[...] = jnp.float32(1.0)  # at its 20 the gradient of the sigmoid is lost in float32
    return attention


def run(attention, e, valid, steps=4):
    """Weights [steps, B, H, S] and where each step attended on average."""
    return tuple(map(np.asarray, _run(attention, e, valid, np.stack([draw(50 + t, 9, E)[: len(e)] for t in range(steps)]))))


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
    at = lambda r: centre('onestep', np.full((1, 1, 1), r, np.float32), np.zeros((1, 1), np.float32), length, True)
    moved, still = (np.asarray(weights_at(at(r), sigma, position, valid))[0, 0] for r in (100.0, -100.0))
    np.testing.assert_allclose(moved[1], GOLDEN['one_step'], atol=5e-6)
    np.testing.assert_allclose([moved[0] / moved[1], moved[2] / moved[1]], GOLDEN['neighbour'], rtol=2e-3)
    assert moved.argmax() == 1 and still.argmax() == 0 and still[0] > 0.9997


def test_golden_soft_stair():
    golden = GOLDEN['soft_stair']
    *values, at_two = np.asarray(jax.jit(soft_stair)(np.array([*golden['r'], 2.0], np.float32)))
    np.testing.assert_allclose(values, golden['value'], atol=5e-4)
    assert at_two - 2 == pytest.approx(4.5e-5, rel=0.02)


@pytest.mark.parametrize('kind', STEPS)
def test_which_steps_are_monotonic(kind):
    r = np.linspace(-3, 3, 61, dtype=np.float32).reshape(1, 61, 1)
    mu = np.asarray(centre(kind, r, np.full((1, 61), 0.4, np.float32), np.array([10]), False, share=0.7))
    assert (mu < 0.4).any() == (kind in ('free', 'softstair'))


def test_the_share_of_monoattn_starts_as_relu():
    r = jnp.array([0.3, 2.0])
    np.testing.assert_allclose(step_size('monoattn', r, jax.nn.sigmoid(20.0)), step_size('relu', r), atol=1e-6)
    assert make('monoattn').theta is not None and make('onestep').theta is None


def test_gates_after_dubois():
    r, past, length = np.float32([[[1.2, 0.3, -2.0]]]), np.float32([[0.05]]), np.array([9])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    stair = 1 + sigmoid(20 * (0.2 - 0.5))
    at = lambda kind, first: float(centre(kind, r, past, length, first).item())
    np.testing.assert_allclose(at('locattn', False), stair / 8 + sigmoid(0.3) * 0.05 + sigmoid(-2.0), rtol=1e-5)
    np.testing.assert_allclose(at('locattn_sigmoid', False), sigmoid(6.0) / 8 + sigmoid(0.3) * 0.05 + sigmoid(-2.0), rtol=1e-5)
    np.testing.assert_allclose(at('locattn_s', False), stair / 8 + 0.05, rtol=1e-5)
    np.testing.assert_allclose(at('locattn_s', True), stair / 8 + 0.05 + sigmoid(0.3), rtol=1e-5)


def test_the_clamp_leaks():
    def at(steps, past):
        return centre('locattn_s', np.float32([[[steps, 0.0]]]), np.float32([[past]]), np.array([2]), False).item()

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


def test_relative_logits_are_those_of_transformer_xl():
    q, k, r, u, v = draw(0, B, H, D), draw(1, B, S, H, D), draw(2, B, S, H, D), draw(3, H, D), draw(4, H, D)
    s = np.asarray(jax.jit(relative_logits)(q, k, r, u, v))
    b, h, j = 1, 0, 3
    expected = ((q[b, h] + u[h]) @ k[b, j, h] + (q[b, h] + v[h]) @ r[b, j, h]) / D**0.5
    np.testing.assert_allclose(s[b, h, j], expected, rtol=1e-5)


def test_relative_weights_depend_on_the_distance_to_the_step():
    """With the same queries and keys everywhere, step t + 1 sees keys as step t saw those before them."""
    attention = make('relative')

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


def test_a_gru_runs_over_the_valid_rows_alone():
    cell, x = nnx.GRUCell(E, D, rngs=nnx.Rngs(0)), draw(0, B, S, E)
    states_of = jax.jit(run_gru, static_argnames='reverse')
    for reverse in (False, True):
        states, last = map(np.asarray, states_of(cell, x, VALID, reverse=reverse))
        alone, end = states_of(cell, x[1:2, :4], np.ones((1, 4), bool), reverse=reverse)
        np.testing.assert_allclose(states[1:2, :4], alone, atol=1e-6)
        np.testing.assert_allclose(last[1:2], end, atol=1e-6)
        assert not states[1, 4:].any()


# Attention.


@pytest.mark.parametrize('name', VARIANTS)
def test_padding_gets_nothing_and_changes_nothing(name):
    attention, e = make(name), draw(0, B, S, E)
    weights, past = run(attention, e, VALID)
    assert not weights[..., ~VALID[1]][:, 1].any() and np.isfinite(weights).all()
    assert (weights.sum(-1) < 1 + 1e-5).all()
    other, same = run(attention, np.where(VALID[..., None], e, np.float32(99.0)), VALID)
    np.testing.assert_allclose(other, weights, atol=1e-5)
    np.testing.assert_allclose(same, past, atol=1e-5)
    longer, _ = run(attention, np.pad(e, ((0, 0), (0, 5), (0, 0))), np.pad(VALID, ((0, 0), (0, 5))))
    np.testing.assert_allclose(longer[..., :S], weights, atol=1e-5)


@pytest.mark.parametrize('name', VARIANTS)
def test_gradients_are_finite_and_reach_every_parameter(name):
    attention, e = make(name), draw(0, B, S, E)
    graphdef, params = nnx.split(attention)

    def loss(params):
        attention = nnx.merge(graphdef, params)
        memory, progress, total = attention.remember(e, VALID), attention.start(B), 0.0
        for t in range(3):
            context, _, progress = attention(draw(60 + t, B, E), memory, progress)
            total += (context * draw(70 + t, *context.shape)).sum()
        return total

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize('length', [6, 300])
def test_one_key_per_step_at_any_length(length):
    """The paper's claim: a step is counted in keys, and the window is as narrow in keys, however long the source is."""
    attention = MonotonicLocation(E, E, head_dim=D, location='onestep', rngs=nnx.Rngs(0))
    attention.w_z[...], attention.b_z[...] = jnp.zeros_like(attention.w_z[...]), jnp.ones(D)
    attention.w_rho[...], attention.w_sigma[...] = jnp.ones((1, D, 1)), -jnp.ones((1, D))  # r = 4, sigma at its floor
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
    np.testing.assert_allclose(results[0.0][1], 0.5 * (results[-50.0][1] + results[50.0][1]), atol=1e-6)
    attention.position_past = True
    attention.b_mix[...] = jnp.zeros(1)
    np.testing.assert_allclose(run(attention, e, VALID, steps=1)[1], results[50.0][1], atol=1e-6)


def test_the_gru_remembers():
    attention, e = make('gru'), draw(0, B, S, E)
    start = attention.start(B)
    np.testing.assert_array_equal(start.hidden, np.broadcast_to(attention.first[...], (B, H, D)))
    once = jax.jit(lambda attention, h: attention(h, attention.remember(e, VALID), start)[2])
    z = (draw(1, B, E) @ np.asarray(attention.w_z[...]) + np.asarray(attention.b_z[...])).reshape(B, H, D)
    expected = jax.jit(lambda cell, *given: cell(*given)[0])(attention.cell, start.hidden, np.maximum(z, 0))
    np.testing.assert_allclose(once(attention, draw(1, B, E)).hidden, expected, atol=1e-6)


# The encoder-decoder.


@pytest.mark.parametrize('name', VARIANTS)
def test_step_by_step_equals_the_full_pass(name):
    model = EncoderDecoder(11, embedding=6, hidden=E, heads=H, head_dim=D, rngs=nnx.Rngs(1), **VARIANTS[name])
    source, target = (np.random.default_rng(i).integers(11, size=(B, n), dtype=np.int32) for i, n in ((0, S), (1, 5)))
    full = np.asarray(read(model, source, VALID, target))
    memory, state = jax.jit(EncoderDecoder.encode)(model, source, VALID)
    for t in range(5):
        logits, _, state = advance(model, target[:, t], memory, state)
        np.testing.assert_allclose(logits, full[:, t], atol=2e-5)
    alone = read(model, source[1:2, :4], VALID[1:2, :4], target[1:2])
    np.testing.assert_allclose(full[1:2], alone, atol=2e-5)


def test_generation_is_greedy():
    model = EncoderDecoder(11, embedding=6, hidden=E, head_dim=D, location='relu', rngs=nnx.Rngs(1))
    source = np.random.default_rng(0).integers(11, size=(B, S), dtype=np.int32)
    out = np.asarray(jax.jit(functools.partial(model.generate, first=3, steps=4))(source, VALID))
    before = np.concatenate([np.full((B, 1), 3, np.int32), out[:, :-1]], axis=1)
    np.testing.assert_array_equal(read(model, source, VALID, before).argmax(-1), out)


def test_dropout_needs_a_key():
    model = EncoderDecoder(11, embedding=6, hidden=E, head_dim=D, rate=0.5, rngs=nnx.Rngs(1))
    source, target = np.ones((B, S), np.int32), np.ones((B, 2), np.int32)
    call = jax.jit(lambda *text, key=None: model(*text, key=key))
    plain, dropped = call(source, VALID, target), call(source, VALID, target, key=jax.random.key(0))
    np.testing.assert_array_equal(plain, call(source, VALID, target))
    assert np.abs(plain - dropped).max() > 1e-3


# The data of the experiment.


def test_copies():
    source, target = batch_of(copying, np.random.default_rng(0), 60, (5, 10))
    np.testing.assert_array_equal(source, target)
    length = (source != PADDING).sum(1) - 2
    assert set(length) == set(range(5, 11)) and (source[:, 0] == START).all() and source.shape == (60, 13)
    assert all(row[n + 1] == END and (row[n + 2 :] == PADDING).all() for row, n in zip(source, length))


def test_lookups():
    """Each table is one bijection in all samples; the answer starts with the string and applies one after the other."""
    rng, seen = np.random.default_rng(0), {}
    for length in [1] * 300 + [2, 4, 9] * 60:
        source, target = looking_up(rng, length)
        assert source[0] == target[0] and len(source) == len(target) == length + 1
        for table, before, after in zip(source[1:], target, target[1:]):
            assert seen.setdefault((table, before), after) == after
            assert length == 1 or table < FIRST + STRINGS + TABLES - 2
    assert len(seen) == STRINGS * TABLES
    for table in range(TABLES):
        assert len({after for (own, _), after in seen.items() if own == FIRST + STRINGS + table}) == STRINGS


# Wrong input.


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(location=None), 'by location'),
        (dict(location='onestp'), "did you mean 'onestep'"),
        (dict(content='relativ'), "did you mean 'relative'"),
        (dict(position_past=True), 'needs location and content'),
        (dict(location=None, content='plain', gru=True), 'needs a location'),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((ValueError, SpecError), match=message):
        MonotonicLocation(E, E, rngs=nnx.Rngs(0), **arguments)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match='hidden must be even'):
        EncoderDecoder(3, hidden=7, rngs=nnx.Rngs(0))

"""Location attention: the sheet's weights, what each step may do, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.mixers.gru import GRU
from posenc_jax.mixers.location_weights import (
    GATES,
    STEPS,
    key_positions,
    location_centre,
    location_weights,
    soft_stair,
    step_size,
)
from posenc_jax.mixers.monotonic_location import (
    MonotonicLocation,
    monotonic_location_mix,
    reverse_valid,
)
from tests.golden_files import golden
from tests.mixers.small import assert_all_learn, draw, moved

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
    own = {**VARIANTS[name], **more}
    attention = moved(MonotonicLocation(E, E, heads=H, head_dim=D, rngs=nnx.Rngs(0), **own))
    if attention.theta is not None:  # at its 20 the gradient of the sigmoid is lost in float32
        attention.theta[...] = jnp.float32(1.0)
    return attention


def run(attention, e, valid, steps=4):
    """Weights [steps, B, H, S] and where each step attended on average."""
    rows = np.stack([draw(50 + t, 9, E)[: len(e)] for t in range(steps)])
    return tuple(map(np.asarray, _run(attention, e, valid, rows)))


@jax.jit
def _run(attention, e, valid, rows):
    memory = attention.remember(e, valid)

    def step(progress, h):
        _, weights, progress = attention(h, memory, progress)
        return progress, (weights, progress.past)

    return jax.lax.scan(step, attention.start(len(e)), rows)[1]


centre = jax.jit(location_centre, static_argnums=(0,))
weights_at = jax.jit(location_weights)


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
    e, mixed = draw(0, B, S, E), jax.jit(monotonic_location_mix)
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

    assert_all_learn(jax.jit(jax.grad(loss))(params))


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

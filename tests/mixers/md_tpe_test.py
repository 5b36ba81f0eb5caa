"""MD-TPE: coefficients and a grid by hand, the definition pair by pair, and its lines of state."""

import numpy as np
import pytest

import posenc_jax as pj
from tests.golden_files import golden
from tests.mixers.small import MODEL, draw, make, whole

VALUES = golden('md_tpe')['values']


def with_values(spec, b, decay):
    """The mixer with the same b in all channels, both [axes, terms]."""
    mixer = make(spec)
    b, decay = np.float32(b), np.float32(decay)
    mixer.b[...] = np.broadcast_to(b[:, None], mixer.b.shape)
    mixer.decay[...] = np.log(decay / (1 - decay))
    return mixer


def run(mixer, x):
    x = np.float32(x)
    x = x[None, :, None].repeat(MODEL, -1) if x.ndim == 1 else x
    return np.asarray(whole(mixer, x, pj.Tokens.of(length=x.shape[1])))


def test_an_impulse_returns_the_coefficients():
    mixer = with_values('md_tpe(terms=2)', [VALUES['b']], [VALUES['decay']])
    y = run(mixer, [0, 1, 0, 0, 0])[0, :, 3]
    np.testing.assert_allclose(y, [0, *VALUES['coefficients']], atol=1e-6)


def test_golden_grid():
    mixer = with_values('md_tpe(shape=(2,), terms=1)', [[1.0], [2.0]], [[0.5], [0.25]])
    np.testing.assert_allclose(
        run(mixer, VALUES['grid']['x'])[0, :, 0], VALUES['grid']['y'], rtol=1e-6
    )


def test_tokens_in_front_of_a_grid_are_left_alone():
    mixer = with_values('md_tpe(shape=(2,), terms=1)', [[1.0], [2.0]], [[0.5], [0.25]])
    x = np.float32(VALUES['grid']['x'])[None, :, None].repeat(MODEL, -1)
    rows = x.shape[1] // 2
    cells = whole(mixer, x, pj.Tokens.on_grid(rows, 2))
    np.testing.assert_allclose(cells[0, :, 0], VALUES['grid']['y'], rtol=1e-6)
    behind = np.pad(x, ((0, 0), (3, 0), (0, 0)), constant_values=7.0)
    y = whole(mixer, behind, pj.Tokens.on_grid(rows, 2, extra=3))
    assert not np.any(y[:, :3])
    np.testing.assert_allclose(y[:, 3:], cells, rtol=1e-6)


def definition(mixer, x, shape):
    """The sums of one row pair by pair, float64; the first axis has any size."""
    decay = 1 / (1 + np.exp(-np.float64(mixer.decay[...])))
    b, rank, y = np.float64(mixer.b[...]), np.arange(len(x)), np.zeros(x.shape)
    first = -(-len(x) // int(np.prod(shape)))
    place = np.stack(np.unravel_index(rank, (first, *shape)), -1)
    for n, m in np.ndindex(len(x), len(x)):
        apart = place[n] - place[m]
        for axis, steps in enumerate(apart):
            if not np.delete(apart, axis).any() and steps >= 0:
                y[n] += (b[axis] * decay[axis] ** steps).sum(-1) * x[m]
    return y


@pytest.mark.full_but_one
@pytest.mark.parametrize('shape', [(), (5,), (3, 2), (7, 1)])
def test_the_definition(shape):
    mixer, x = make(f'md_tpe(shape={shape}, terms=3)'), draw(0, 1, 40, MODEL)
    expected = definition(mixer, np.float64(x[0]), shape)
    np.testing.assert_allclose(run(mixer, x)[0], expected, atol=2e-5)

"""Tests of cheems: the scan, the chunks and the layer against the dual form in NumPy, limiting
cases, shifts of positions, and steep decay.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import posenc_jax as pj
from posenc_jax.methods.rope import rope
from posenc_jax.mixers.cheems import Cheems
from posenc_jax.mixers.ssd import ssd_chunks, ssd_scan
from tests.golden_files import golden
from tests.mixers.small import moved
from tests.mixers.small import normal as draw

GOLDEN = golden('cheems')
B, T, H, N, P = 2, 37, 3, 8, 4
SIZES = dict(heads=4, head_dim=8, model_dim=12, layers=2)


def random_inputs(steep=1.0):
    """u, rate, b, c, starts and a first state."""
    rate = -steep * jax.nn.softplus(draw(1, B, T, H)) * jnp.arange(1.0, H + 1)
    starts = jax.random.uniform(jax.random.key(2), (B, T)) < 0.1
    b, c = draw(3, B, T, H, N), draw(4, B, T, H, N)
    return draw(0, B, T, H, P), rate, b, c, starts, draw(5, B, H, N, P)


def dual(u, rate, b, c, starts=None, state=None):
    """`y_i = sum_{j<=i} <c_i, b_j> exp(sum_{j<r<=i} rate_r) u_j` over the tokens of one document,
    in float64. A state in front counts as a first token of the first document.
    """
    u, rate, b, c = (np.asarray(a, np.float64) for a in (u, rate, b, c))
    batch, length, heads = rate.shape
    number = np.zeros((batch, length), int) if starts is None else np.cumsum(starts, axis=1)
    y = np.zeros(u.shape)
    for i in range(length):
        for j in range(i + 1):
            weight = np.exp(rate[:, j + 1 : i + 1].sum(axis=1)) * (c[:, i] * b[:, j]).sum(-1)
            same = (number[:, i] == number[:, j])[:, None]
            y[:, i] += np.where(same, weight, 0)[..., None] * u[:, j]
        if state is not None:
            seen = np.einsum('bhnp,bhn->bhp', np.asarray(state, np.float64), c[:, i])
            kept = np.exp(rate[:, : i + 1].sum(axis=1)) * (number[:, i] == 0)[:, None]
            y[:, i] += kept[..., None] * seen
    return y


def test_the_example_by_numpy():
    one = lambda name: jnp.asarray(GOLDEN[name], jnp.float32)[None, :, None]
    pos, dt, u = jnp.array([GOLDEN['pos']]), one('dt'), one('u')
    b, c = (rope(one(name), pos, base=GOLDEN['base']) for name in 'bc')
    starts, state = jnp.zeros((1, 5), bool), jnp.zeros((1, 1, 4, 2))
    scanned = ssd_scan(dt[..., None] * u, GOLDEN['A'] * dt, b, c, starts, state)
    cut = ssd_chunks(dt[..., None] * u, GOLDEN['A'] * dt, b, c, starts, state, chunk=2)
    for y, last in (scanned, cut):
        y = y + GOLDEN['D'] * u
        np.testing.assert_allclose(y[0, :, 0], GOLDEN['y'], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(last[0, 0], GOLDEN['state'], rtol=1e-5, atol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('chunk', [16, 1, 64])
def test_scan_and_chunks_are_the_dual_form(chunk):
    inputs = random_inputs()
    expected = dual(*inputs)
    y, last = jax.jit(ssd_scan)(*inputs)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    cut, end = jax.jit(ssd_chunks, static_argnames='chunk')(*inputs, chunk=chunk)
    np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(end, last, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_steep_decay_keeps_its_precision_and_its_gradients():
    """Two tokens that decay slowly, behind others of steep decay, keep the digits of the decay
    between them, which the difference of two plain sums of 1e5 would lose.
    """
    u, rate, b, c, _, state = random_inputs(steep=2000.0)
    rate = rate.at[:, -3:].set(-0.01)
    expected = dual(u, rate, b, c, state=state)
    none = jnp.zeros((B, T), bool)
    run = lambda rate: ((y := ssd_chunks(u, rate, b, c, none, state)[0]).sum(), y)
    gradient, y = jax.jit(jax.grad(run, has_aux=True))(rate)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    plain = np.cumsum(np.asarray(rate), axis=1)
    lost = np.abs(np.exp(plain[:, -1] - plain[:, -2]) - np.exp(-0.01)).max()
    assert lost > 1e-4
    assert np.isfinite(gradient).all()


def layer_of(seed=0, **fields):
    """A layer of which all parameters are random."""
    return moved(Cheems(**{**SIZES, 'chunk': 8, **fields}, rngs=nnx.Rngs(seed)), seed=50)


def whole(layer, x, pos):
    return np.asarray(layer.whole(x, pj.Tokens.of(positions=pos)))


X, POS = draw(9, 2, 20, 12), np.arange(20)[None] * 3


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'fields', [dict(), dict(rotate=False), dict(gate=True, base=100.0)], ids=str
)
def test_the_layer_is_its_equations(fields):
    layer = layer_of(**fields)
    x, get = np.asarray(X, np.float64), lambda a: np.asarray(a[...], np.float64)
    heads = lambda w: np.einsum('bld,dhp->blhp', x, get(w))
    u, b, c = (heads(w) for w in (layer.w_u, layer.w_b, layer.w_c))
    dt = np.log1p(np.exp(x @ get(layer.w_dt) + get(layer.b_dt)))
    if fields.get('rotate', True):
        theta = fields.get('base', 1e4) ** (-np.arange(4) / 4)
        turn = np.exp(1j * POS[..., None] * theta)[:, :, None]
        turned = lambda a: (a[..., :4] + 1j * a[..., 4:]) * turn
        b, c = (np.concatenate([turned(a).real, turned(a).imag], -1) for a in (b, c))
    y = dual(dt[..., None] * u, -np.exp(get(layer.a_log)) * dt, b, c)
    y += get(layer.skip)[:, None] * u
    if fields.get('gate'):
        z = heads(layer.w_z)
        y *= z / (1 + np.exp(-z))
    expected = np.einsum('blhp,hpd->bld', y, get(layer.w_out))
    np.testing.assert_allclose(whole(layer, X, POS), expected, rtol=1e-4, atol=2e-5)
    # What a gated memory unit reads is the output before gate and projection.
    read = layer.read(X, pj.Tokens.of(positions=POS), jnp.zeros((2, 20), bool), layer.initial(2))[0]
    read = read if layer.w_z is None else read * jax.nn.silu(heads(layer.w_z))
    np.testing.assert_allclose(
        np.einsum('blhp,hpd->bld', read, layer.w_out[...]), expected, rtol=1e-4, atol=2e-5
    )


def test_a_shift_of_positions_changes_nothing():
    near = whole(layer_of(), X, POS)
    for shift in (5, 1_000_000):
        # Results reach 22; processors round the products differently.
        np.testing.assert_allclose(whole(layer_of(), X, POS + shift), near, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_a_step_computes_one_token():
    layer, tok = Cheems(**SIZES, rngs=nnx.Rngs(0)), pj.Tokens.of(length=512)
    graphdef, state = nnx.split(layer)

    def flops(length):
        run = lambda state, x, own: nnx.merge(graphdef, state).step(x, tok, own, jnp.int32(3))
        arguments = state, jnp.zeros((1, length, 12)), layer.start(1, tok)
        return jax.jit(run).lower(*arguments).compile().cost_analysis()['flops']

    assert flops(1) < flops(64) / 40


@pytest.mark.full
def test_a_layer_is_exported_for_any_length():
    graphdef, state = nnx.split(layer_of())
    run = jax.jit(
        lambda state, x: nnx.merge(graphdef, state).whole(x, pj.Tokens.of(length=x.shape[1]))
    )
    (length,) = export.symbolic_shape('T')
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    exported = export.export(run)(shapes, jax.ShapeDtypeStruct((2, length, 12), jnp.float32))
    for x in (X, X[:, :7]):
        np.testing.assert_allclose(exported.call(state, x), run(state, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dt', [0.001, 0.5, 10.0])
def test_the_first_step_is_that_of_the_argument(dt):
    layer = Cheems(**SIZES, dt=dt, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jax.nn.softplus(layer.b_dt[...]), dt, rtol=1e-4)
    decay = np.exp(-np.exp(layer.a_log[...]) * dt)
    np.testing.assert_allclose(decay, np.exp(-np.arange(1, 5) * dt), rtol=1e-5)

"""LightNet: the closed form by hand, the recurrence step by step in float64, and its state."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.kernels.program import at_any_depth
from posenc_jax.mixers.lightnet import PIECE, decayed_sum, running_log_sum
from posenc_jax.mixers.piecewise_scan import scan_pieces
from tests.golden_files import golden
from tests.mixers.small import MODEL, draw, make, whole

VALUES = golden('lightnet')['values']
SPECS = (
    'lightnet()',
    'lightnet(encoding=md_lrpe())',
    'lightnet(encoding=md_lrpe(form="cosine", learned=True))',
)


@jax.jit
def averaged(q, k, v):
    """The results of LightNet from its parts, [B, T, H, V], without norm and gate."""
    starts = jnp.zeros(q.shape[:2], bool)
    zeros = jnp.zeros((q.shape[0], *q.shape[2:]))
    log_sum = running_log_sum(k, starts, zeros)
    rows = q, jnp.exp(k - log_sum), v, log_sum, starts
    state = jnp.zeros((*zeros.shape, v.shape[-1])), zeros
    return scan_pieces(decayed_sum, state, rows, PIECE)[0]


def by_hand(k):
    q = np.float32(VALUES['q']).reshape(1, 1, 1, 2).repeat(4, 1)
    v = np.float32(VALUES['v']).reshape(1, 4, 1, 1)
    return averaged(q, np.float32(k).reshape(1, 4, 1, 1).repeat(2, -1), v)[0, :, 0, 0]


def test_golden_averages():
    np.testing.assert_allclose(by_hand(np.zeros(4)), VALUES['equal_keys'], rtol=1e-6)
    rising = by_hand(np.log(VALUES['key_weights']))
    np.testing.assert_allclose(rising, VALUES['rising_keys'], rtol=1e-6)
    zero = jnp.zeros((1, 4, 1, 1))
    log_sum = running_log_sum(zero, jnp.zeros((1, 4), bool), zero[:, 0]).ravel()
    decay = np.exp(np.concatenate([[0.0], log_sum[:-1]]) - log_sum)
    np.testing.assert_allclose(decay, VALUES['decay'], rtol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('size', [1.0, 15.0])
def test_the_closed_form(size):
    """Also with keys so large that e^k is no float32."""
    q, k, v = draw(0, 2, 150, 2, 3), size * draw(1, 2, 150, 2, 3), draw(2, 2, 150, 2, 5)
    weight = np.exp(np.float64(k))
    top = np.cumsum(weight[..., None] * v[..., None, :], axis=1)
    expected = np.einsum('bthf,bthfv->bthv', q, top / (1 + np.cumsum(weight, 1))[..., None])
    np.testing.assert_allclose(averaged(q, k, v), expected, atol=2e-5, rtol=1e-5)


def by_pairs(q, k, v):
    """The same from the weights of all pairs of tokens."""
    zero = jnp.zeros_like(k[:, :1])
    log_sum = jax.lax.cumlogsumexp(jnp.concatenate([zero, k], axis=1), axis=1)[:, 1:]
    seen = jnp.tri(k.shape[1], dtype=bool)[..., None, None]
    weights = jnp.exp(jnp.where(seen, k[:, None] - log_sum[:, :, None], -jnp.inf))
    return jnp.einsum('bthf,btshf,bshv->bthv', q, weights, v)


@pytest.mark.parametrize('top', [1.0, 100.0])
def test_gradients_equal_those_of_all_pairs(top):
    """A key of 100 takes the branch in which a product of two factors would overflow."""
    q, k, v = draw(0, 1, 6, 2, 3), draw(1, 1, 6, 2, 3), draw(2, 1, 6, 2, 4)
    k[0, 3] = top
    weight = draw(3, 1, 6, 2, 4)
    own, expected = (
        jax.grad(lambda *rows, f=f: (f(*rows) * weight).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (averaged, by_pairs)
    )
    for a, b in zip(own, expected):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_gradient_keeps_no_array_of_pairs_and_features():
    rows = draw(0, 1, PIECE, 1, 8), draw(1, 1, PIECE, 1, 8), draw(2, 1, PIECE, 1, 8)
    grad = jax.grad(lambda *rows: averaged(*rows).sum(), argnums=(0, 1, 2))
    results = [
        math.prod(out.aval.shape)
        for eqn in at_any_depth(jax.make_jaxpr(grad)(*rows).eqns)
        if eqn.primitive.name == 'cond'
        for out in eqn.outvars
    ]
    assert results and max(results) < PIECE * PIECE * 8


def sequential(mixer, x, positions):
    """The mixer token by token in float64."""
    to = lambda w: np.einsum('td,dhf->thf', x, np.float64(w[...]))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    q, k, v = to(mixer.w_q), to(mixer.w_k), to(mixer.w_v)
    q = q * sigmoid(q)
    enc, out = mixer.encoding, []
    s, log_sum = 0.0, np.zeros(k.shape[1:])
    for t, n in enumerate(positions):
        last, log_sum = log_sum, np.logaddexp(log_sum, k[t])
        decay, key, query = np.exp(last - log_sum), np.exp(k[t] - log_sum), q[t]
        if enc is not None:
            theta = np.array(enc.fixed) if enc.theta is None else np.float64(enc.theta[...])
            angle = n * np.broadcast_to(theta, (k.shape[1], theta.shape[-1]))
            cos, sin = np.cos(angle), np.sin(angle)
            if enc.form == 'cosine':
                turn = lambda a: np.concatenate([a * cos, a * sin], -1)
                decay = np.concatenate([decay, decay], -1)
            else:
                half = k.shape[-1] // 2
                turn = lambda a: np.concatenate(
                    [a[:, :half] * cos - a[:, half:] * sin, a[:, :half] * sin + a[:, half:] * cos],
                    -1,
                )
            key, query = turn(key), turn(query)
        s = decay[..., None] * s + key[..., None] * v[t][:, None]
        out.append(np.einsum('hf,hfv->hv', query, s))
    out = np.array(out)
    out = out / np.sqrt(np.mean(out**2, -1, keepdims=True) + 1e-6) * np.float64(mixer.scale[...])
    gate = sigmoid(np.einsum('td,dr,rhv->thv', x, mixer.w_down[...], mixer.w_up[...]))
    return np.einsum('thv,hvd->td', out * gate, np.float64(mixer.w_out[...]))


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', SPECS)
def test_the_recurrence(spec):
    mixer, x = make(spec), draw(3, 1, 75, MODEL)
    out = whole(mixer, x, pj.Tokens.of(length=75))
    np.testing.assert_allclose(out[0], sequential(mixer, np.float64(x[0]), range(75)), atol=2e-5)


@pytest.mark.full
def test_only_cosine_sees_differences_of_coordinates_alone():
    """In the other form the two features of a turned pair decay differently."""
    x, row, column = draw(4, 1, 6, MODEL), np.arange(6) // 3, np.arange(6) % 3
    of = lambda *rows: pj.Tokens.of(positions=np.stack(rows, -1)[None])

    def change(form, other):
        mixer = make(f'lightnet(encoding=md_lrpe(components=2, form={form!r}))')
        return np.abs(whole(mixer, x, of(row, column)) - whole(mixer, x, other)).max()

    assert (
        change('cosine', of(row + 5, column + 1)) < 1e-5 < 1e-3 < change('cosine', of(column, row))
    )
    assert change('rotate', of(row + 5, column + 1)) > 1e-3


def test_the_weights_of_old_tokens_fall_as_one_over_t():
    """The claim of the paper: an additive decay keeps an average over everything so far."""
    length = 200
    v = np.zeros((1, length, 1, 1), np.float32)
    v[0, 0] = 1.0
    ones = np.ones_like(v)
    np.testing.assert_allclose(
        averaged(ones, 0 * ones, v).ravel(), 1 / (np.arange(length) + 2), rtol=1e-4
    )


def test_keys_far_above_all_before_them_decay_exactly():
    rng = np.random.default_rng(5)
    q, v = (rng.normal(size=(1, 40, 2, 4)).astype(np.float32) for _ in range(2))
    k = rng.normal(scale=60.0, size=(1, 40, 2, 4))
    total = np.logaddexp.accumulate(np.concatenate([np.zeros((1, 1, 2, 4)), k], axis=1), axis=1)
    log_sum = total[:, 1:]
    seen = np.tril(np.ones((40, 40)))[None, :, :, None, None]
    with np.errstate(over='ignore'):
        weights = np.where(seen > 0, np.exp(k[:, None] - log_sum[:, :, None]), 0.0)
    expected = np.einsum('bthf,btshf,bshv->bthv', q, weights, v)
    rows = q, np.exp(k - log_sum), v, log_sum, np.zeros((1, 40), bool)
    rows = tuple(jnp.asarray(a, jnp.float32 if a.dtype != bool else bool) for a in rows)
    state = jnp.zeros((1, 2, 4, 4)), jnp.zeros((1, 2, 4))
    out = decayed_sum(state, rows)[1]
    np.testing.assert_allclose(out, expected, atol=2e-4 * np.abs(expected).max())

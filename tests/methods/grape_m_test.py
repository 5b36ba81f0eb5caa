"""Multiplicative GRAPE: the paper's closed form, RoPE at the start, and matrix exponentials."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.grape_m import grape_m_frequencies, grape_m_turn
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden_suite
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw
from tests.refusals import refused

N, K, H, L = 4, 2, 8, 10
Q, KEYS = draw(0, 1, L, N, H), draw(1, 1, L, K, H)
TOKENS = pj.Tokens.of(length=L)
SHIFTED = pj.Tokens.of(positions=np.arange(L)[None] + 7)


def build(options='', *, moved=0.0, **context):
    part = pj.make(f'grape_m({options})', **(dict(kv_heads=K, head_dim=H) | context))
    variables = [own for own in vars(part).values() if isinstance(own, nnx.Variable)]
    for seed, variable in enumerate(variables):
        variable[...] += moved * draw(20 + seed, *variable.shape)
    return part


def matrix(a, b, t):
    """G whose columns are the turned axes."""
    turn = lambda x: grape_m_turn(x, jnp.asarray(a), jnp.asarray(b), jnp.float32(1), jnp.asarray(t))
    return turn(jnp.eye(len(a))).T


def generator(a, b):
    return np.outer(a, b) - np.outer(b, a)


test_golden = golden_suite('grape_m', atol=1e-6) | {
    'plane.matrix': lambda plane: matrix(plane['a'], plane['b'], plane['t'])
}


def test_the_closed_form_is_the_matrix_exponential():
    for seed, t in ((0, 1), (1, 3), (2, -2), (3, 0.25)):
        a, b = draw(seed, 2, 6)
        expected = scipy.linalg.expm(t * generator(*np.float64([a, b])))
        np.testing.assert_allclose(matrix(a, b, t), expected, atol=2e-5)


def test_it_is_orthogonal_and_positions_add():
    a, b = draw(4, 2, 6)
    first, second, both = (np.asarray(matrix(a, b, t)) for t in (2, 3, 5))
    np.testing.assert_allclose(first @ first.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(first @ second, both, atol=1e-5)


def test_parallel_vectors_turn_nothing_and_get_the_gradient_of_the_generator():
    x, aim, a = draw(5, 3, 6)
    for b in (2.0 * a, 0.0 * a):
        turned, pull = jax.vjp(
            lambda b: grape_m_turn(
                jnp.asarray(x), jnp.asarray(a), b, jnp.float32(1), jnp.asarray(3)
            ),
            jnp.asarray(b),
        )
        np.testing.assert_allclose(turned, x, atol=1e-5)
        # d/db of aim . 3 (a b^T - b a^T) x
        np.testing.assert_allclose(
            pull(jnp.asarray(aim))[0], 3 * ((aim @ a) * x - (a @ x) * aim), rtol=1e-4, atol=1e-4
        )


def test_it_starts_as_rope():
    expected = logits(pj.make('rope()', head_dim=H), Q, KEYS)
    for options in ('', 'per_head=True', f'planes={H // 2}'):
        np.testing.assert_allclose(logits(build(options), Q, KEYS), expected, atol=2e-5)
    assert build().log_freq.shape == (H // 2,) and build('per_head=True').log_freq.shape == (K, 4)


def test_frequencies_of_zero_are_no_position():
    part = build()
    part.log_freq[...] = jnp.full(H // 2, -1e4)
    expected = logits(pj.make('rope(freqs=p_rope(p=0))', head_dim=H), Q, KEYS)
    np.testing.assert_allclose(logits(part, Q, KEYS), expected, atol=1e-6)
    part.log_freq[...] = build().log_freq[...].at[2:].set(-1e4)  # p_rope keeps the highest
    expected = logits(pj.make('rope(freqs=p_rope(p=0.5))', head_dim=H), Q, KEYS)
    np.testing.assert_allclose(logits(part, Q, KEYS), expected, atol=2e-5)


def test_the_factor_of_sixteen_slows_training_down():
    log_freq = build().log_freq[...]
    np.testing.assert_allclose(log_freq / 16, np.log(rope_frequencies(H, 1e4)), rtol=1e-6)
    moved = grape_m_frequencies(log_freq + 0.8) / grape_m_frequencies(log_freq)
    np.testing.assert_allclose(moved, np.exp(0.05), rtol=1e-5)


def by_pairs(turns, pos):
    """`q_i^T G(i)^T G(j) k_j / sqrt(H)`, G of each key head by `turns`."""
    out = np.zeros((1, N, L, L))
    for h in range(N):
        of_head = [turns(h // (N // K), p) for p in pos]
        for i, j in np.ndindex(L, L):
            out[0, h, i, j] = of_head[i] @ Q[0, i, h] @ (of_head[j] @ KEYS[0, j, h // (N // K)])
    return out / H**0.5


def test_logits_equal_a_loop_over_pairs():
    trained = build('planes=3', moved=0.3)
    a, b, omega = (np.asarray(v[...], np.float64) for v in (trained.a, trained.b, trained.omega))

    def in_order(head, p):
        planes = [p * w * generator(x, y) for x, y, w in zip(a[head], b[head], omega[head])]
        return (
            scipy.linalg.expm(planes[2])
            @ scipy.linalg.expm(planes[1])
            @ scipy.linalg.expm(planes[0])
        )

    per_head = build('per_head=True', moved=2.0)
    theta = np.exp(np.asarray(per_head.log_freq[...], np.float64) / 16)

    def canonical(head, p):
        off = np.diag(theta[head], -H // 2) - np.diag(theta[head], H // 2)
        return scipy.linalg.expm(p * off)

    for part, turns in ((trained, in_order), (per_head, canonical)):
        expected = by_pairs(turns, np.arange(L))
        np.testing.assert_allclose(logits(part, Q, KEYS), expected, atol=1e-4)


def test_one_trained_plane_depends_on_distances_alone_and_oblique_planes_do_not():
    change = lambda part: np.abs(
        logits(part, Q, KEYS, SHIFTED) - logits(part, Q, KEYS, TOKENS)
    ).max()
    assert change(build('planes=1', moved=0.3)) < 5e-5
    assert change(build('planes=2', moved=0.3)) > 0.05


test_wrong_calls = refused() | {
    'planes=5, and heads of width 8 have 4 orthogonal planes at most; the nearest is 4': (
        lambda: build('planes=5')
    ),
    'planes must be at least 1, got 0': lambda: build('planes=0'),
    'even and at least 2, got 7; the nearest is 6': lambda: build(head_dim=7),
    'built for head_dim=8 and 2 key heads, got vectors of width 8 and 4': lambda: logits(
        build('per_head=True'), Q, Q
    ),
    'built for head_dim=8, got vectors of width 4': lambda: logits(
        build(), Q[..., :4], KEYS[..., :4]
    ),
    'one position per token': lambda: logits(
        build(), Q, KEYS, pj.Tokens.of(positions=np.zeros((1, L, 2)))
    ),
}

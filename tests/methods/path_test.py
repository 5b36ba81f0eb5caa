"""PaTH against the sheet's numbers, products of explicit Householder matrices, and its limiting
cases.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.path import path_directions, path_keys, path_match, unit_lower_inverse
from tests.golden_files import golden_suite
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run
from tests.methods.models import moved

B, N, K, H, D, L = 2, 4, 2, 8, 12, 17
TOLERANCE = 1e-5  # float32, products of 17 maps
PROJECT = jax.jit(lambda encoding, q, k, v, tok, x: encoding.project(q, k, v, tok, tok, x))


def build(options='', **context):
    """Parameters large enough that directions, steps and gates differ from token to token."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    encoding = pj.make(f'path({options or "rank=4"})', causal=True, rngs=nnx.Rngs(0), **sizes)
    return moved(encoding, scale=0.6)


def inputs(length=L, seed=3):
    return draw_inputs((B, N, K, H, D), length, seed)


def reference(path, q, k, v, x):
    """The definition for one unpadded, unpacked batch: explicit matrices H_t, multiplied one after
    another.
    """
    length = x.shape[1]
    u = (x if path.down is None else x @ path.down[...]) @ path.up[...].reshape(-1, K * H)
    u = jnp.pad(u, ((0, 0), (2, 0), (0, 0)))
    c = path.taps[...].reshape(3, -1)
    y = jax.nn.silu(c[0] * u[:, :-2] + c[1] * u[:, 1:-1] + c[2] * u[:, 2:]).reshape(
        -1, length, K, H
    )
    w = y / jnp.sqrt((y**2).sum(-1, keepdims=True) + 1e-6)
    beta = 2 / (1 + jnp.exp(-(x @ path.beta_kernel[...] + path.beta_bias[...])))
    maps = jnp.eye(H) - beta[..., None, None] * w[..., :, None] * w[..., None, :]
    k, v, maps = (jnp.repeat(a, N // K, axis=2) for a in (k, v, maps))
    token = jnp.arange(length)

    def column(product, at):  # product: q_i^T H_i ... H_{j+1}, all i at once
        j, k, map = at
        s = jnp.where(token >= j, jnp.einsum('bihd,bhd->bhi', product, k), -jnp.inf)
        moved = jnp.einsum('bihd,bhde->bihe', product, map)
        return jnp.where(token[:, None, None] >= j, moved, product), s

    by_token = token, jnp.moveaxis(k, 1, 0), jnp.moveaxis(maps, 1, 0)
    logits = jnp.moveaxis(jax.lax.scan(column, q, by_token, reverse=True)[1], 0, -1) / H**0.5
    if path.forget:
        total = jnp.cumsum(
            jnp.log(jax.nn.sigmoid(x @ path.gate_kernel[...] + path.gate_bias[...])), axis=1
        )
        decay = jnp.swapaxes(total, 1, 2)[..., :, None] - jnp.swapaxes(total, 1, 2)[..., None, :]
        logits = logits + (decay / H**0.5 if path.gate_scale != 1.0 else decay)
    return jnp.einsum('bhij,bjhd->bihd', jax.nn.softmax(logits, axis=-1), v)


match = jax.jit(path_match)
inverse_of = jax.jit(unit_lower_inverse)


def sheet_block(q, k, w, beta):
    """`path_match` of one query, one head."""
    q, k, w, beta = (np.array(a, np.float32)[None, None] for a in (q, k, w, beta))
    index = np.arange(k.shape[2])[None]
    s, after = match(q, k, w, beta, index, np.ones((1, 1, 1, k.shape[2]), bool))
    return np.asarray(s)[0, 0, 0], np.asarray(after)[0, 0, 0]


def product(golden):
    zeros = [[0.0, 0.0]] * 2
    return [sheet_block([e], zeros, golden['w'], golden['beta'])[1] for e in np.eye(2)]


def moved_key(golden):
    one = lambda *a: [np.array(x, np.float32)[None, None, None] for x in a]
    arguments = one(golden['k'], golden['w'][1], golden['beta'][1])
    return jax.jit(path_keys)(*arguments)[0, 0, 0]


def logit(golden):
    keys = [golden['k'], [0.0, 0.0]]
    return sheet_block([golden['q']], keys, golden['w'], golden['beta'])[0][0]


def reflected(distance):
    """The logit of a key so many tokens before the query, all of whose maps are one reflection."""

    def row(golden):
        five = [[golden[name]] * 5 for name in ('k', 'w', 'beta')]
        s = sheet_block([golden['q']], *five)[0][::-1]
        expected = golden['odd' if distance % 2 else 'even']
        np.testing.assert_allclose(s[distance::2], [expected] * len(s[distance::2]), atol=1e-5)
        return s[distance]

    return row


def forgotten(scaled):
    def row(golden):
        sizes = dict(heads=1, head_dim=golden['head_dim'], model_dim=D)
        encoding = pj.make(f'path(forget=True, gate_scaled={scaled})', causal=True, **sizes)
        # No input: every gate is sigmoid(0) = 1/2.
        zero = np.zeros((1, 3, 1, golden['head_dim']), np.float32)
        v, x = np.eye(3, dtype=np.float32)[None, :, None], np.zeros((1, 3, D), np.float32)
        return run(encoding, zero, zero, v, x, pj.Tokens.of(length=3), block=2)[0, 2, 0]

    return row


test_golden = golden_suite('path', atol=1e-6) | {
    'product.H2_H1': product,
    'product.k_after_H2': moved_key,
    'product.logit': logit,
    'reflection.even': (reflected(0), {'atol': 1e-5}),
    'reflection.odd': (reflected(1), {'atol': 1e-5}),
    'forget.unscaled': forgotten(False),
    'forget.scaled': forgotten(True),
}


@pytest.mark.parametrize('size', [1, 2, 4, 64])
def test_inverse(size):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, size, 8))
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    lower = np.tril(2 * w @ np.swapaxes(w, 1, 2), -1)
    inverse = inverse_of(np.array(lower, np.float32))
    np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(size) + lower), atol=1e-5)
    tangent = rng.standard_normal(lower.shape)  # only its strictly lower part counts
    moved_by = jax.jit(lambda lower, tangent: jax.jvp(unit_lower_inverse, (lower,), (tangent,))[1])
    moved = moved_by(np.array(lower, np.float32), np.array(tangent, np.float32))
    exact = np.linalg.inv(np.eye(size) + lower)
    expected = -exact @ np.tril(tangent, -1) @ exact
    np.testing.assert_allclose(moved, expected, atol=2e-6 * max(1.0, np.abs(expected).max()) * size)


def test_longer_than_a_chunk():
    """200 keys in one tile are four chunks, the last one padded; against one map after another, in
    float64.
    """
    keys, rng = 200, np.random.default_rng(1)
    q, k, w = (rng.standard_normal((count, H)) for count in (1, keys, keys))
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    beta = rng.uniform(0, 2, keys)
    s, after = sheet_block(q, k, w, beta)
    row, expected = q[0], np.zeros(keys)
    for j in range(keys - 1, -1, -1):
        expected[j] = row @ k[j]
        row = row - beta[j] * (row @ w[j]) * w[j]
    np.testing.assert_allclose(s, expected, atol=TOLERANCE)
    np.testing.assert_allclose(after, row, atol=TOLERANCE)
    assert np.all(np.abs(expected) <= np.linalg.norm(q) * np.linalg.norm(k, axis=-1) + 1e-9)


@pytest.mark.parametrize('options', ['rank=4', 'rank=None, forget=True, gate_scaled=False'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    theirs = check_values_and_gradients(
        build(options), inputs(), lambda e, *a: reference(e.parts[0], *a), TOLERANCE
    )
    assert all(np.abs(b).max() > 1e-3 for b in jax.tree.leaves(theirs))


@pytest.mark.full
def test_zero_steps_are_nope():
    encoding, arrays, tok = build(), inputs(), pj.Tokens.of(length=L)
    path = encoding.parts[0]
    path.beta_kernel[...] = np.zeros((D, K), np.float32)
    path.beta_bias[...] = np.full(K, -200.0, np.float32)
    out = run(encoding, *arrays, tok, block=8)
    expected = run(pj.make('nope()', causal=True), *arrays, tok, block=8)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_padding_in_between_does_not_act():
    encoding, arrays = build('forget=True'), inputs()
    valid = (np.arange(L) < 3) | (np.arange(L) > 5)
    kept = np.flatnonzero(valid)
    # the taps reach rows, not tokens: rows that are not valid read as zero
    q, k, v, x = map(np.asarray, arrays)
    x = np.where(valid[None, :, None], x, 0.0)
    tok = pj.Tokens.of(valid=valid[None])
    _, _, _, tq, tk = PROJECT(encoding, q, k, v, tok, np.pad(x, ((0, 0), (2, 0), (0, 0))))
    pick = lambda tree: jax.tree.map(lambda a: np.asarray(a)[:, kept], tree)
    alone = [pick(a) for a in (q, k, v, tq, tk)]
    expected = jax.jit(lambda *a: pj.attend(encoding, *a, applied=pj.TOKEN_STAGE))(*alone)
    out = np.asarray(run(encoding, q, k, v, x, tok, block=8))[:, kept]
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)


def test_taps_stop_at_documents():
    u = np.float32([0, 0, 1, 2, 3, 4, 5, 6]).reshape(1, 8, 1, 1)
    taps = np.float32([100, 10, 1]).reshape(3, 1, 1)
    raw = lambda *sums: np.array(sums) / (1 + np.exp(-np.array(sums)))
    norm = lambda y: y / np.sqrt(y**2 + 1e-6)
    plain = np.asarray(jax.jit(path_directions)(u, taps, pj.Tokens.of(length=6)))[0, :, 0, 0]
    np.testing.assert_allclose(plain, norm(raw(1.0, 12.0, 123.0, 234.0, 345.0, 456.0)), atol=1e-6)
    # signs and sizes survive the norm only for small sums, so read the taps from the gradient of
    # what they reach
    packed = pj.Tokens.of(segment=[[0, 0, 0, 1, 1, 1]])
    reach = jax.jacobian(lambda u: path_directions(u, 1e-3 * taps, packed).sum((2, 3)))
    reached = np.abs(np.asarray(jax.jit(reach)(1e-3 * u))[0, :, 0, 2:, 0, 0]) > 0
    expected = np.zeros((6, 6), bool)
    for t in range(6):
        expected[t, max(t - 2, t // 3 * 3) : t + 1] = True
    np.testing.assert_array_equal(reached, expected)


def test_evolve_leaves_later_keys_and_other_documents():
    encoding, (q, k, v, x) = build().parts[0], inputs()
    tok = pj.Tokens.of(segment=(np.arange(L) >= 4)[None])
    q, k, v, x = map(np.asarray, (q, k, v, x))
    _, _, _, _, tk = PROJECT(encoding, q[:, :1], k[:, :1], v[:, :1], tok.slice(9, 1), x[:, :3])
    keys = np.swapaxes(k, 1, 2)
    moved = np.abs(jax.jit(encoding.update_keys)(keys, tok, tk) - keys).max((0, 1, 3)) > 0
    np.testing.assert_array_equal(moved, (np.arange(L) >= 4) & (np.arange(L) < 9))


def test_features_are_float32_in_a_layer_of_bfloat16():
    *arrays, x = (a.astype(jnp.bfloat16) for a in inputs())
    rows = jnp.pad(x, ((0, 0), (2, 0), (0, 0)))
    tok = pj.Tokens.of(length=L)
    *_, tk = jax.eval_shape(PROJECT, build('forget=True'), *arrays, tok, rows)
    assert {a.dtype for a in jax.tree.leaves(tk.feats)} == {jnp.dtype('float32')}


def test_positions_do_not_matter():
    encoding, arrays = build(), inputs()
    moved = pj.Tokens.of(positions=jnp.arange(L)[None] * 3 + 100)
    still = run(encoding, *arrays, pj.Tokens.of(length=L))
    np.testing.assert_array_equal(run(encoding, *arrays, moved), still)


def test_wrong_input():
    encoding, (q, k, v, x), tok = build(), inputs(), pj.Tokens.of(length=L)
    with pytest.raises(ValueError, match='input: none'):
        encoding.project(q, k, v, tok, tok)
    with pytest.raises(ValueError, match='2 tokens before: 17 keys, input: 17 tokens'):
        encoding.project(q, k, v, tok, tok, x)

"""PaTH against the sheet's numbers, products of explicit Householder matrices, and its limiting
cases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.path import evolve_keys, path_directions, path_match, unit_lower_inverse
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

GOLDEN = golden('path')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 17
TOLERANCE = 1e-5  # float32, products of 17 maps
PROJECT = jax.jit(lambda encoding, q, k, v, tok, x: encoding.project(q, k, v, tok, tok, x))


def build(options='', **context):
    """Parameters large enough that directions, steps and gates differ from token to token."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    encoding = pj.make(f'path({options or "rank=4"})', causal=True, rngs=nnx.Rngs(0), **sizes)
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)
    leaves = [
        0.6 * np.random.default_rng(i).standard_normal(leaf.shape, dtype=np.float32)
        for i, leaf in enumerate(leaves)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, map(jnp.asarray, leaves)), rest)


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


def test_sheet_product():
    golden = GOLDEN['product']
    after = [
        sheet_block([e], [[0.0, 0.0]] * 2, golden['w'], golden['beta'])[1]
        for e in ([1.0, 0.0], [0.0, 1.0])
    ]
    np.testing.assert_allclose(after, golden['H2_H1'], atol=1e-6)
    k, w, beta = (
        np.array(a, np.float32)[None, None, None]
        for a in (golden['k'], golden['w'][1], golden['beta'][1])
    )
    moved = jax.jit(evolve_keys)(k, w, beta)
    np.testing.assert_allclose(np.asarray(moved)[0, 0, 0], golden['k_after_H2'], atol=1e-6)
    s, _ = sheet_block([golden['q']], [golden['k'], [0.0, 0.0]], golden['w'], golden['beta'])
    np.testing.assert_allclose(s[0], golden['logit'], atol=1e-6)


def test_sheet_reflection():
    golden = GOLDEN['reflection']
    s, _ = sheet_block([golden['q']], [golden['k']] * 5, [golden['w']] * 5, [golden['beta']] * 5)
    np.testing.assert_allclose(
        s[::-1], [golden['even'], golden['odd']] * 2 + [golden['even']], atol=1e-5
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize(('scaled', 'name'), [(False, 'unscaled'), (True, 'scaled')])
def test_sheet_forget(scaled, name):
    golden = GOLDEN['forget']
    width = golden['head_dim']
    encoding = pj.make(
        f'path(forget=True, gate_scaled={scaled})',
        causal=True,
        heads=1,
        head_dim=width,
        model_dim=D,
    )
    zero = np.zeros((1, 3, 1, width), np.float32)  # no input: every gate is sigmoid(0) = 1/2
    v, x = np.eye(3, dtype=np.float32)[None, :, None], np.zeros((1, 3, D), np.float32)
    out = run(encoding, zero, zero, v, x, pj.Tokens.of(length=3), block=2)
    np.testing.assert_allclose(np.asarray(out)[0, 2, 0], golden[name], atol=1e-6)


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
    q, k, w = (
        rng.standard_normal((1, H)),
        rng.standard_normal((keys, H)),
        rng.standard_normal((keys, H)),
    )
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
    path.beta_kernel[...], path.beta_bias[...] = (
        np.zeros((D, K), np.float32),
        np.full(K, -200.0, np.float32),
    )
    out = run(encoding, *arrays, tok, block=8)
    np.testing.assert_allclose(
        out, run(pj.make('nope()', causal=True), *arrays, tok, block=8), atol=2e-6
    )


@pytest.mark.full
def test_packing_in_tiles():
    encoding, arrays = build('forget=True'), inputs(16)
    tok = pj.Tokens.of(length=8)
    alone = [run(encoding, *(a[:, at] for a in arrays), tok) for at in (slice(8), slice(8, 16))]
    documents = pj.Tokens.of(segment=np.arange(16)[None].repeat(B, 0) >= 8)
    packed = run(encoding, *arrays, documents, block=(5, 6))
    np.testing.assert_allclose(packed, np.concatenate(alone, 1), atol=TOLERANCE)


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
    attend = jax.jit(functools.partial(pj.attend, applied=pj.TOKEN_STAGE))
    expected = attend(encoding, q[:, kept], k[:, kept], v[:, kept], pick(tq), pick(tk))
    np.testing.assert_allclose(
        np.asarray(run(encoding, q, k, v, x, tok, block=8))[:, kept], expected, atol=TOLERANCE
    )


def test_taps_stop_at_documents():
    u = np.float32([0, 0, 1, 2, 3, 4, 5, 6]).reshape(1, 8, 1, 1)
    taps = np.float32([100, 10, 1]).reshape(3, 1, 1)
    raw = lambda *sums: np.array(sums) / (1 + np.exp(-np.array(sums)))
    norm = lambda y: y / np.sqrt(y**2 + 1e-6)
    plain = np.asarray(jax.jit(path_directions)(u, taps, pj.Tokens.of(length=6)))[0, :, 0, 0]
    np.testing.assert_allclose(plain, norm(raw(1.0, 12.0, 123.0, 234.0, 345.0, 456.0)), atol=1e-6)
    # signs and sizes survive the norm only for small sums, so read the taps from the gradient of
    # what they reach
    reach = jax.jacobian(
        lambda u: path_directions(
            u, 1e-3 * taps, tok=pj.Tokens.of(segment=[[0, 0, 0, 1, 1, 1]])
        ).sum((2, 3))
    )
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


@pytest.mark.full
def test_bfloat16_stays_float32_inside():
    encoding, tok = build('forget=True'), pj.Tokens.of(length=L)
    arrays = [a.astype(jnp.bfloat16) for a in inputs()]
    out = run(encoding, *arrays, tok, block=8)
    exact = run(encoding, *(a.astype(jnp.float32) for a in arrays), tok)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), exact, atol=2**-8 * 4
    )  # rounding of weights and of the result
    _, _, _, _, tk = jax.eval_shape(
        PROJECT, encoding, *arrays[:3], tok, jnp.pad(arrays[3], ((0, 0), (2, 0), (0, 0)))
    )
    assert {a.dtype for a in jax.tree.leaves(tk.feats)} == {jnp.dtype('float32')}


def test_positions_do_not_matter():
    encoding, arrays = build(), inputs()
    moved = pj.Tokens.of(positions=jnp.arange(L)[None] * 3 + 100)
    np.testing.assert_array_equal(
        run(encoding, *arrays, moved), run(encoding, *arrays, pj.Tokens.of(length=L))
    )


def test_wrong_input():
    encoding, (q, k, v, x), tok = build(), inputs(), pj.Tokens.of(length=L)
    with pytest.raises(ValueError, match='input: none'):
        encoding.project(q, k, v, tok, tok)
    with pytest.raises(ValueError, match='2 tokens before: 17 keys, input: 17 tokens'):
        encoding.project(q, k, v, tok, tok, x)
    with pytest.raises(pj.SpecError, match='rank must be at least 1, got 0; None is accepted too'):
        build('rank=0')
    with pytest.raises(pj.SpecError, match='causal attention only'):
        pj.make('path()', causal=False, heads=N, head_dim=H, model_dim=D)

"""iRPE: indices and ids by hand and by definition, the whole formula in float64, its limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.irpe_index import METHODS, irpe_buckets, irpe_ids, irpe_piecewise
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.refusals import refused

VALUES = golden('irpe')['values']
B, N, K, H = 2, 4, 2, 8


POS = grid(3, 5)
TOK, INPUTS = pj.Tokens.of(positions=POS), qkv(16, N, K, H, rows=B)


def make(arguments, causal=None):
    """The encoding with random tables, which are zero at first."""
    encoding = pj.make(f'irpe({arguments})', heads=N, head_dim=H, causal=causal)
    for number, (_, param) in enumerate(nnx.iter_graph(encoding)):
        if isinstance(param, nnx.Param):
            param[...] = draw(10 + number, *param.shape)
    return encoding


def g(x, alpha=1.9, beta=3.8, gamma=15.2):
    """The definition, number by number."""
    if abs(x) <= alpha:
        return int(np.round(x))
    far = alpha + (beta - alpha) * np.log(abs(x) / alpha) / np.log(gamma / alpha)
    return int(np.sign(x) * min(beta, np.round(far)))


# Squared distances in order, up to 98 rows or columns.
DISTANCES = sorted({x * x + y * y for x in range(99) for y in range(99)})


def ids_by_definition(a, b, method, ratio=1.9):
    """The ids of a pair of places for every table."""
    m = int(2 * ratio)
    index = lambda x: g(x, ratio, 2 * ratio, 8 * ratio) + m
    if max(a) < 0 or max(b) < 0:
        return {'product': [(2 * m + 1) ** 2], 'cross': [2 * m + 1] * 2}.get(method, [2 * m + 1])
    dr, dc = np.float64(a) - b
    if method == 'product':
        return [index(dr) * (2 * m + 1) + index(dc)]
    if method == 'cross':
        return [index(dr), index(dc)]
    square = dr**2 + dc**2
    if method == 'euc':
        return [index(np.round(np.sqrt(square)))]
    return [index(square if method == 'quant' else DISTANCES.index(int(square)))]


def reference(encoding, q, k, v, causal=None):
    """The whole formula pair by pair, float64."""
    part = encoding.parts[0] if causal else encoding
    length, group = POS.shape[1], N // K
    q, k, v = np.float64(q), np.float64(k).repeat(group, 2), np.float64(v).repeat(group, 2)
    wide = lambda a: np.broadcast_to(np.float64(a), (a.shape[0], N, *a.shape[2:]))
    tables = part.bias, part.queries, part.keys, part.values
    t, t_q, t_k, t_v = (None if param is None else wide(param[...]) for param in tables)
    s, added = np.zeros((B, N, length, length)), np.zeros((N, length, length, H))
    for i, j in np.ndindex(length, length):
        there = ids_by_definition(POS[0, i], POS[0, j], part.method)
        back = ids_by_definition(POS[0, j], POS[0, i], part.method)
        s[:, :, i, j] = np.einsum('bnh,bnh->bn', q[:, i], k[:, j]) * H**-0.5
        for m, (c, d) in enumerate(zip(there, back)):
            if t is not None:
                s[:, :, i, j] += t[m, :, c]
            if t_k is not None:
                s[:, :, i, j] += np.einsum('nh,bnh->bn', t_k[m, :, :, c], q[:, i]) * H**-0.5
            if t_q is not None:
                s[:, :, i, j] += np.einsum('nh,bnh->bn', t_q[m, :, :, d], k[:, j]) * H**-0.5
            if t_v is not None:
                added[:, i, j] += t_v[m, :, c]
    if causal:
        s = np.where(np.tril(np.ones((length, length), bool)), s, -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    w = w / w.sum(-1, keepdims=True)
    return np.einsum('bnij,bjnh->binh', w, v) + np.einsum('bnij,nijh->binh', w, added)


def ids_from_the_corner(method):
    pos = jnp.asarray(grid(4, 5, beside=0))
    return irpe_ids(pos[:, :1], pos, method)[0].reshape(4, 5)


def wide_index(wide):
    x = wide['from'] + jnp.arange(len(wide['values']))
    return irpe_piecewise(x, wide['alpha'], wide['beta'], wide['gamma'])


test_golden = golden_suite('irpe') | {
    'g_default': lambda: irpe_piecewise(jnp.arange(17)),
    'g_wide.values': wide_index,
    'g_wide.at_40': lambda wide: irpe_piecewise(
        jnp.array(40), wide['alpha'], wide['beta'], wide['gamma']
    ),
    'buckets.*': lambda _, method: irpe_buckets(method),
    'product': lambda: ids_from_the_corner('product'),
    'euc': lambda: ids_from_the_corner('euc'),
    'quant': lambda: ids_from_the_corner('quant'),
    'quant_paper': lambda: ids_from_the_corner('quant_paper'),
}


def test_the_piecewise_index():
    negative = irpe_piecewise(-jnp.arange(17))
    np.testing.assert_array_equal(negative, -np.array(VALUES['g_default']))
    x = np.arange(-700, 701)
    for scale in ((8.0, 16.0, 64.0), (3.3, 6.6, 26.4), (0.5, 1.0, 4.0), (60.0, 120.0, 480.0)):
        found = irpe_piecewise(jnp.asarray(x), *scale)
        np.testing.assert_array_equal(found, [g(n, *scale) for n in x])


def test_the_ids_of_the_way_back():
    """The index g is an odd function, so the ids of both ways add up to twice the middle one."""
    pos = jnp.asarray(grid(4, 5, beside=0))
    (ids,) = irpe_ids(pos, pos)
    np.testing.assert_array_equal(np.diagonal(ids[0]), 24)
    np.testing.assert_array_equal(ids[0].T, 48 - ids[0])


@pytest.mark.parametrize('method', METHODS)
def test_ids_by_definition(method):
    places = np.concatenate([grid(4, 6)[0], [[-3, 2], [40, -7], [-70000, 70000], [9, 40]]])
    pos = jnp.asarray(places[None])
    for ratio in (1.9, 8.0):
        found = np.stack(irpe_ids(pos, pos, method, ratio), axis=-1)[0]
        near = places[:-2] if method == 'quant_paper' else places  # of 98 rows or columns at most
        expected = [[ids_by_definition(a, b, method, ratio) for b in near] for a in near]
        np.testing.assert_array_equal(found[: len(near), : len(near)], expected)
        assert found.max() <= irpe_buckets(method, ratio) and found.min() >= 0
        # Without a token beside the grid the same ids come from the other branch.
        inner = np.stack(irpe_ids(pos[:, 1:], pos[:, 1:], method, ratio), axis=-1)[0]
        np.testing.assert_array_equal(inner, found[1:, 1:])


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    ('arguments', 'causal'),
    [
        ('on="qkv", shared=False', True),
        ('on="qkv"', None),
        ('on="qkv", method="cross"', None),
        ('on="qk", method="quant_paper", shared=False', None),
        ('mode="bias", method="cross"', None),
        ('mode="bias", shared=False, method="euc"', True),
    ],
)
def test_the_whole_formula(arguments, causal):
    encoding = make(arguments, causal)
    expected = reference(encoding, *INPUTS, causal)
    for block in (None, (5, 7)):
        out = attend(encoding, *INPUTS, TOK, block=block)
        np.testing.assert_allclose(out, expected, atol=2e-5)


def test_pairs_with_a_class_token_share_one_bucket():
    """Changing its column of the tables changes those logits alone; all others are kept."""
    part, (q, k, _), zero = make('on="k"'), INPUTS, jnp.zeros((B, N, 16, 16))

    def logits():
        tokens = part.project(q, k, k, TOK, TOK)[3:]
        return np.asarray(part.logits(zero, None, None, *tokens, None, ())[0])

    before = logits()
    part.keys[...] = part.keys[...].at[..., -1].add(1.0)
    changed = np.abs(logits() - before).max((0, 1)) > 1e-3
    expected = np.zeros((16, 16), bool)
    expected[0] = expected[:, 0] = True
    np.testing.assert_array_equal(changed, expected)


def test_tables_and_doors():
    part = pj.make('irpe()', heads=N, head_dim=H)
    assert part.keys.shape == (1, 1, H, 50) and not part.opens('collect')
    assert part.opens('project') and part.queries is part.values is part.bias is None
    part = pj.make('irpe(mode="bias", method="cross", shared=False)', heads=N, head_dim=H)
    assert part.bias.shape == (2, N, 8) and not part.opens('project') and part.opens('logits')
    part = pj.make('irpe(on="v", method="euc")', heads=N, head_dim=H)
    assert part.values.shape == (1, 1, 8, H) and not part.opens('logits') and part.opens('collect')


test_wrong_calls = refused() | {
    r'positions \[B, L, 2\]': lambda: attend(make('on="k"'), *INPUTS),
    'integer positions': lambda: attend(make('on="k"'), *INPUTS, pj.Tokens.of(positions=POS / 2)),
    '0 < alpha < beta < gamma': lambda: irpe_piecewise(jnp.array(1), 2.0, 1.0, 9.0),
    'irpe has parameters of 4 heads, the queries have 2': lambda: attend(
        make('mode="bias", shared=False'), *qkv(16, heads=2), TOK
    ),
}

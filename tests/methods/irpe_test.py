"""iRPE: indices and ids by hand and by definition, the whole formula in float64, its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.irpe_index import METHODS, irpe_buckets, irpe_ids, irpe_piecewise
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

VALUES = golden('irpe')['values']
B, N, K, H = 2, 4, 2, 8


def grid(rows, columns, extra=1):
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1)
    return np.concatenate([np.full((extra, 2), -1), cells])[None]


POS = grid(3, 5)
TOK = pj.Tokens.of(positions=POS)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs(length=16):
    return tuple(draw(seed, B, length, n, H) for seed, n in enumerate((N, K, K)))


def make(arguments, causal=False):
    """The encoding with random tables, which are zero at first."""
    causality = dict(causal=True) if causal else {}
    encoding = pj.make(f'irpe({arguments})', heads=N, head_dim=H, **causality)
    for number, (_, param) in enumerate(nnx.iter_graph(encoding)):
        if isinstance(param, nnx.Param):
            param[...] = jnp.asarray(draw(10 + number, *param.shape))
    return encoding


def run(encoding, q, k, v, tok=TOK, **how):
    return _run(tuple(how.items()), encoding, q, k, v, tok)


@functools.partial(jax.jit, static_argnums=0)
def _run(how, encoding, q, k, v, tok):
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok)
    return pj.attend(encoding, q, k, v, tq, tk, **dict(how), applied=pj.TOKEN_STAGE)


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
    index = lambda x: g(x, ratio, 2 * ratio, 8 * ratio)
    if max(a) < 0 or max(b) < 0:
        return (
            [(2 * m + 1) ** 2] if method == 'product' else [2 * m + 1] * (1 + (method == 'cross'))
        )
    dr, dc = np.float64(a) - b
    if method == 'product':
        return [(index(dr) + m) * (2 * m + 1) + index(dc) + m]
    if method == 'cross':
        return [index(dr) + m, index(dc) + m]
    square = dr**2 + dc**2
    if method == 'euc':
        return [index(np.round(np.sqrt(square))) + m]
    if method == 'quant':
        return [index(square) + m]
    return [index(DISTANCES.index(int(square))) + m]


def reference(encoding, q, k, v, causal=False):
    """The whole formula pair by pair, float64."""
    part = encoding.parts[0] if causal else encoding
    length, group = POS.shape[1], N // K
    q, k, v = np.float64(q), np.float64(k).repeat(group, 2), np.float64(v).repeat(group, 2)
    table = lambda param: None if param is None else np.broadcast_to(
        np.float64(param[...]), (param.shape[0], N, *param.shape[2:])
    )  # fmt: skip
    t, t_q, t_k, t_v = map(table, (part.bias, part.queries, part.keys, part.values))
    s, added = np.zeros((B, N, length, length)), np.zeros((N, length, length, H))
    for i in range(length):
        for j in range(length):
            there, back = (
                ids_by_definition(*pair, part.method)
                for pair in ((POS[0, i], POS[0, j]), (POS[0, j], POS[0, i]))
            )
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


def test_the_piecewise_index():
    np.testing.assert_array_equal(irpe_piecewise(jnp.arange(17)), VALUES['g_default'])
    np.testing.assert_array_equal(irpe_piecewise(-jnp.arange(17)), -np.array(VALUES['g_default']))
    wide = VALUES['g_wide']
    scale = wide['alpha'], wide['beta'], wide['gamma']
    x = wide['from'] + jnp.arange(len(wide['values']))
    np.testing.assert_array_equal(irpe_piecewise(x, *scale), wide['values'])
    assert irpe_piecewise(jnp.array(40), *scale) == wide['at_40']
    x = np.arange(-700, 701)
    for scale in ((8.0, 16.0, 64.0), (3.3, 6.6, 26.4), (0.5, 1.0, 4.0), (60.0, 120.0, 480.0)):
        np.testing.assert_array_equal(
            irpe_piecewise(jnp.asarray(x), *scale), [g(n, *scale) for n in x]
        )


def test_ids_by_hand():
    pos = jnp.asarray(grid(4, 5, extra=0))
    for method in ('product', 'euc', 'quant', 'quant_paper'):
        (ids,) = irpe_ids(pos[:, :1], pos, method)
        np.testing.assert_array_equal(ids.reshape(4, 5), VALUES[method], method)
    for method, count in VALUES['buckets'].items():
        assert irpe_buckets(method) == count
    (ids,) = irpe_ids(pos, pos)
    np.testing.assert_array_equal(np.diagonal(ids[0]), 24)
    # The ids of the way back: g is odd.
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
        ('on="qkv"', False),
        ('on="qkv", method="cross"', False),
        ('on="qk", method="quant_paper", shared=False', False),
        ('mode="bias", method="cross"', False),
        ('mode="bias", shared=False, method="euc"', True),
    ],
)
def test_the_whole_formula(arguments, causal):
    encoding, (q, k, v) = make(arguments, causal), inputs()
    expected = reference(encoding, q, k, v, causal)
    for block in (None, (5, 7)):
        np.testing.assert_allclose(run(encoding, q, k, v, block=block), expected, atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize('arguments', ['on="qkv", method="cross"', 'mode="bias", shared=False'])
def test_gradients_are_those_of_jax(arguments):
    encoding, qkv = make(arguments), inputs()
    graphdef, state = nnx.split(encoding)
    target = draw(9, B, 16, N, H)
    own, dense = (
        jax.grad(
            lambda state, *qkv, how=how: (
                run(nnx.merge(graphdef, state), *qkv, **how) * target
            ).sum(),
            (0, 1, 2, 3),
        )(state, *qkv)
        for how in (dict(block=(5, 7)), dict(implementation='dense'))
    )
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_zero_tables_are_plain_attention():
    encoding = pj.make('irpe(on="qkv")', heads=N, head_dim=H)
    np.testing.assert_allclose(
        run(encoding, *inputs()), run(pj.make('nope()'), *inputs()), atol=1e-6
    )
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            run(make('on="v"'), *inputs()), run(encoding, *inputs()), atol=0.1
        )


def test_offsets_alone_count():
    encoding = make('on="qkv"')
    moved = np.where(POS < 0, POS, POS + [1000, -2])
    np.testing.assert_allclose(
        run(encoding, *inputs(), pj.Tokens.of(positions=moved)), run(encoding, *inputs()), atol=1e-5
    )


def test_pairs_with_a_class_token_share_one_bucket():
    """Changing its column of the tables changes those logits alone; all others are kept."""
    part, (q, k, _) = make('on="k"'), inputs()
    s = lambda: np.asarray(
        part.logits(
            jnp.zeros((B, N, 16, 16)), None, None, *part.project(q, k, k, TOK, TOK)[3:], None, ()
        )[0]
    )
    before = s()
    part.keys[...] = part.keys[...].at[..., -1].add(1.0)
    changed = np.abs(s() - before).max((0, 1)) > 1e-3
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


def test_wrong_values_are_refused():
    for arguments, message in (
        ('mode="biased"', "did you mean 'bias'|one of"),
        ('method="products"', "did you mean 'product'|one of"),
        ('on="vk"', 'one of'),
        ('mode="bias", on="v"', "'bias' has one table"),
        ('ratio=0.4', 'ratio must be at least 0.5'),
        ('ratio=65.0', 'ratio must be at most 64'),
    ):
        with pytest.raises(SpecError, match=message):
            pj.make(f'irpe({arguments})', heads=N, head_dim=H)
    for tok, message in (
        (pj.Tokens.of(length=16), r'positions \[B, L, 2\]'),
        (pj.Tokens.of(positions=POS / 2), 'integer positions'),
    ):
        with pytest.raises(ValueError, match=message):
            run(make('on="k"'), *inputs(), tok)
    with pytest.raises(ValueError, match='0 < alpha < beta < gamma'):
        irpe_piecewise(jnp.array(1), 2.0, 1.0, 9.0)
    q, k, v = (draw(0, B, 16, 2, H) for _ in range(3))
    with pytest.raises(ValueError, match='irpe has parameters of 4 heads, the queries have 2'):
        run(make('mode="bias", shared=False'), q, k, v)

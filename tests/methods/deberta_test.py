"""DeBERTa: released buckets, a loop over pairs, limits of the terms, the projections of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.deberta import deberta_bucket, deberta_index, deberta_logits, deberta_starts
from posenc_jax.methods.shaw import shaw_logits
from posenc_jax.protocol.capabilities import prepared
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.methods.models import moved
from tests.methods.pair_logits import logits
from tests.methods.pairs import draw, qkv
from tests.refusals import refused

N, K, H, D, L = 4, 2, 8, 12, 9


def make(arguments='max_distance=5', heads=N):
    encoding = pj.make(f'deberta({arguments})', heads=heads, head_dim=H, model_dim=D)
    return moved(encoding, 0.3)


def bucket(case):
    distance = jnp.array(case['distance'])[None, None]
    return deberta_bucket(distance, case['buckets'], case['max_distance'])[0, 0]


def index(case):
    return deberta_index(
        jnp.array(case['distance'])[None], jnp.zeros((1, 1), int), case['max_distance']
    )[0, :, 0]


def attention(case):
    """Of two heads of width 2, from queries and keys."""
    arguments = f'max_distance={case["max_distance"]}, buckets={case["buckets"]}'
    encoding = pj.make(f'deberta({arguments})', heads=2, head_dim=2, model_dim=4)
    for name, shape in dict(table=(-1, 4), w_k=(4, 2, 2), w_q=(4, 2, 2), b_q=(2, 2)).items():
        getattr(encoding, name)[...] = jnp.array(case[name]).reshape(shape)
    q, k = (jnp.array(case[name]).reshape(1, -1, 2, 2) for name in 'qk')
    return jax.nn.softmax(logits(encoding, q, k)[0])


test_golden = golden_suite(
    'deberta',
    {
        'buckets.bucket': bucket,
        'index.index': index,
        'released.*.attention': (attention, dict(atol=2e-6)),
    },
)


@pytest.mark.parametrize('buckets, most', [(4, 9), (8, 6), (32, 128), (64, 4096), (256, 512)])
def test_buckets_follow_the_formula(buckets, most):
    """In float64; distances at which the logarithm is an integer up to rounding are decided exactly
    by the powers.
    """
    n, middle = np.arange(1, 3 * most), buckets // 2
    r = np.minimum(n, most - 1)
    place = np.log(r / middle) / np.log((most - 1) / middle) * (middle - 1)
    clear = (np.abs(place - np.round(place)) > 1e-9) | (r <= middle)
    expected = np.where(r <= middle, r, np.ceil(place) + middle)
    found = np.asarray(deberta_bucket(jnp.asarray(n)[None, None], buckets, most))[0, 0]
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert (np.diff(found) >= 0).all() and found[-1] == buckets - 1
    earlier = deberta_bucket(-jnp.asarray(n)[None, None], buckets, most)[0, 0]
    np.testing.assert_array_equal(earlier, -found)


def loop(encoding, q, k, pos, terms):
    """The definition in float64, pair by pair."""
    exact = lambda a: np.asarray(a, np.float64)
    table = exact(encoding.table[...])
    if encoding.norm_scale is not None:
        table = table - table.mean(1, keepdims=True)
        table = table / np.sqrt((table**2).mean(1, keepdims=True) + 1e-7)
        table = table * exact(encoding.norm_scale[...]) + exact(encoding.norm_bias[...])
    span = len(table) // 2
    out = np.zeros((len(q), N, L, L))
    for b, n, i, j in np.ndindex(out.shape):
        a, c = exact(q[b, i, n]), exact(k[b, j, n * K // N])
        distance = pos[i] - pos[j]
        if encoding.buckets is not None:
            size, middle = abs(distance), encoding.buckets // 2
            size = min(size, encoding.max_distance - 1)
            if size > middle:
                ratio = np.log((encoding.max_distance - 1) / middle)
                size = middle + np.ceil(np.log(size / middle) / ratio * (middle - 1) - 1e-9)
            distance = int(np.sign(distance) * size)
        row = table[min(max(distance + span, 0), 2 * span - 1)]
        out[b, n, i, j] = a @ c
        if 'c2p' in terms:
            out[b, n, i, j] += a @ (row @ exact(encoding.w_k[...])[:, n])
        if 'p2c' in terms:
            of_q = row @ exact(encoding.w_q[...])[:, n] + exact(encoding.b_q[...])[n]
            out[b, n, i, j] += of_q @ c
    return out / np.sqrt((1 + len(terms)) * H)


@pytest.mark.parametrize(
    'arguments, terms',
    [
        ('max_distance=5', ('c2p', 'p2c')),
        ('max_distance=20, buckets=8, norm=True', ('c2p', 'p2c')),
        ('max_distance=5, terms="c2p"', ('c2p',)),
        ('max_distance=5, terms="p2c"', ('p2c',)),
    ],
)
def test_equals_a_loop_over_pairs(arguments, terms):
    q, k, _ = qkv(L, N, K)
    encoding, pos = make(arguments), np.array([0, 1, 2, 5, 6, 7, 3, 20, 40])
    found = logits(encoding, q, k, pj.Tokens.of(positions=pos[None]))
    np.testing.assert_allclose(found, loop(encoding, q, k, pos, terms), atol=2e-5)


PLACES = {
    'counted': np.arange(L),
    'behind others': np.arange(L) + 7,
    'with gaps': np.array([0, 1, 2, 5, 6, 7, 3, 20, 40]),
    'once more': np.array([0, 1, 2, 3, 4, 0, 1, 2, 3]),
}


@pytest.mark.parametrize('places', PLACES)
@pytest.mark.parametrize('block', [None, 3])
def test_attention_is_that_of_the_loop_over_pairs(places, block):
    """Values and gradients, in tiles whose positions count up and in others."""
    (q, k, v), pos = map(jnp.asarray, qkv(L, N, K)), PLACES[places]
    tok = pj.Tokens.of(positions=pos[None])
    chain = pj.chain(make('max_distance=5'), pj.make('causal()'))
    scores = jnp.where(np.tri(L, dtype=bool), loop(make(), q, k, pos, ('c2p', 'p2c')), -jnp.inf)
    values = jnp.repeat(v, N // K, axis=2)
    expected = jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(scores), values)
    np.testing.assert_allclose(attention_of(chain, q, k, v, tok, block), expected, atol=2e-5)
    slopes = lambda **form: nnx.grad(
        lambda chain: (attention_of(chain, q, k, v, tok, **form) ** 2).sum()
    )(chain)
    by_hand, by_jax = slopes(block=block), slopes(implementation='dense')
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(by_hand), jax.tree.leaves(by_jax), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=jax.tree_util.keystr(path))


def attention_of(chain, q, k, v, tok, block=None, implementation=None):
    projected = chain.project(q, k, v, tok, tok)
    options = dict(block=block, implementation=implementation, applied=('project',))
    return pj.attend(chain, *projected, **options)


def test_preparing_changes_nothing():
    q, k, v = map(jnp.asarray, qkv(L, N, K))
    for arguments in ('max_distance=5', 'max_distance=20, buckets=8, norm=True, terms="p2c"'):
        encoding = make(arguments)
        ready = prepared(encoding)
        assert encoding.table is not None and ready.table is None
        np.testing.assert_allclose(logits(ready, q, k), logits(encoding, q, k), atol=1e-6)


def test_the_pure_function_is_the_definition():
    q, k, _ = qkv(L, N, K)
    encoding, pos = make(), np.arange(L)
    rows = encoding.table[...]
    keys = jnp.einsum('cd,dnh->cnh', rows, encoding.w_k[...])
    queries = jnp.einsum('cd,dnh->cnh', rows, encoding.w_q[...]) + encoding.b_q[...]
    index = deberta_index(jnp.asarray(pos)[None], jnp.asarray(pos)[None], 5)
    found = deberta_logits(q.swapaxes(1, 2), k.swapaxes(1, 2), keys, queries, index)
    np.testing.assert_allclose(found, loop(encoding, q, k, pos, ('c2p', 'p2c')), atol=2e-5)


def test_zero_vectors_leave_a_temperature_of_three():
    q, k, _ = qkv(L, N, K)
    encoding = pj.make('deberta(std=0.0, max_distance=5)', heads=N, head_dim=H, model_dim=D)
    plain = pj.make('nope()')
    np.testing.assert_allclose(
        logits(encoding, q, k), logits(plain, q, k) / np.sqrt(3), rtol=1e-6, atol=1e-6
    )


def test_the_first_term_alone_is_shaw_at_another_scale():
    """As long as no distance is clipped."""
    q, k, _ = qkv(L, 1, 1)
    encoding, pos = make(f'max_distance={L}, terms="c2p"', heads=1), jnp.arange(L)[None]
    keys = jnp.einsum('cd,dh->ch', encoding.table[...], encoding.w_k[:, 0])
    of_shaw = keys[1:][::-1]  # from j - i = 1 - L on; the first row is that of i - j = -L
    expected = shaw_logits(q.swapaxes(1, 2), k.swapaxes(1, 2), of_shaw, pos, pos) / np.sqrt(2)
    np.testing.assert_allclose(logits(encoding, q, k), expected, atol=2e-6)


test_wrong_values = refused(
    {
        'buckets must be at least 4, at most 1024 and even, got 7; the nearest is 8': lambda: make(
            'buckets=7'
        ),
        'max_distance must be at least 18 with 32 buckets': lambda: make(
            'buckets=32, max_distance=17'
        ),
        'max_distance must be at least 1': lambda: make('max_distance=0'),
        'buckets must be even and at least 4, got 5': lambda: deberta_starts(5, 9),
        'deberta needs integer positions, got float32': lambda: deberta_index(
            jnp.ones((1, 1)) / 2, jnp.ones((1, 1))
        ),
        'takes what its own `qkv` has projected': lambda: logits(
            make('share_att_key=True'), *qkv(3, N, K)[:2]
        ),
        'has parameters of 4 heads, the queries have 2': lambda: logits(make(), *qkv(3, 2, 2)[:2]),
    }
)


def projected(encoding, x, linear, tok):
    return encoding.project(*encoding.qkv(x, linear, tok), tok, tok, x)


@pytest.mark.parametrize(
    'arguments', ['max_distance=5', 'max_distance=20, buckets=8, norm=True, terms="p2c"']
)
def test_shared_projections_are_weights_that_were_copied(arguments):
    """Key heads that several query heads share give each of them the same PK."""
    w_q, w_k, b_q = (
        0.4 * draw(at, *shape) for at, shape in enumerate([(D, N, H), (D, K, H), (N, H)])
    )
    x, tok = jnp.asarray(draw(3, 2, L, D)), pj.Tokens.of(length=L)
    of = lambda x, w: jnp.einsum('bld,dnh->blnh', x, w)
    linear = lambda x: (of(x, w_q) + b_q, of(x, w_k), of(x, w_k))
    own = make(arguments)
    shared = make(f'{arguments}, share_att_key=True')
    assert len(jax.tree.leaves(nnx.state(shared))) == (3 if 'norm' in arguments else 1)
    for name in ('table', 'norm_scale', 'norm_bias'):
        if getattr(own, name) is not None:
            getattr(shared, name)[...] = getattr(own, name)[...]
    if own.w_k is not None:
        own.w_k[...] = np.repeat(w_k, N // K, axis=1)
    own.w_q[...], own.b_q[...] = w_q, b_q
    q, k, _, tq, tk = projected(shared, x, linear, tok)
    found = pair_logits(shared, q.swapaxes(1, 2), k.swapaxes(1, 2), tq, tk)[0]
    np.testing.assert_allclose(found, logits(own, *linear(x)[:2]), atol=2e-5)


def test_a_model_may_share_the_table_of_all_layers():
    cfg = TransformerConfig(
        vocab_size=7, train_len=L, layers=2, width=D, heads=2, kind='encoder', share='model',
        bias='qkv', encoding='deberta(max_distance=5, share_att_key=True)',
    )  # fmt: skip
    model, ids = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(L)[None] % 7
    (table,) = [part.table for part in model.shared if part.opens('qkv')]
    assert table.shape == (10, D) and not model.blocks[0].encodings
    slopes = nnx.grad(lambda model: (model(ids) ** 2).sum())(model)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes['shared']))


def test_unknown_terms_are_refused():
    with pytest.raises(SpecError, match="terms='p2p' is not one of"):
        make('terms="p2p"')

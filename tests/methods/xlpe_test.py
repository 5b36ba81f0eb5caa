"""Cross-lingual positions: orders from alignments, the orders that a bracketing grammar reaches,
the two levels, and refused input.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.tasks.translation import Translation
from posenc_jax.methods.xlpe import alignment_keys, ranks, xlpe_btg_order, xlpe_order
from tests.golden_files import golden, golden_suite
from tests.lab.tasks.bracketing import reachable
from tests.methods.models import model_of
from tests.methods.pairs import draw

GOLDEN = golden('xlpe')['values']
D, HEADS, L = 8, 4, 6
PI = np.array([0, 5, 1, 2, 3, 4])


def placed(pi=PI, valid=None):
    pi = np.asarray(pi)
    pos = np.stack([np.arange(len(pi)), pi], axis=-1)
    return pj.Tokens.of(positions=pos[None], valid=valid)


def layer(spec, **more):
    return pj.Attention(spec, width=D, heads=HEADS, causal=False, rngs=nnx.Rngs(0), **more)


def sinusoid(positions, width=D):
    """Float64, one row for each position."""
    angle = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(positions), width)


# The order.


def order(name):
    """The order of an alignment, which the grammar gives as well as no grammar."""

    def row(values):
        pairs = values['alignment'] if name == 'order' else [(word, 3 - word) for word in range(4)]
        size = len(values[name])
        found = [xlpe_order([*map(tuple, pairs)], size, btg=btg) for btg in (False, True)]
        np.testing.assert_array_equal(*found)
        return found[0]

    return row


test_golden = golden_suite('xlpe', {name: order(name) for name in ('order', 'inversion')})


def test_words_without_an_alignment_follow_the_word_before_them():
    assert alignment_keys([(1, 4), (1, 5)], 3).tolist() == [-1.0, 4.5, 4.5]
    assert xlpe_order([(2, 0)], 4).tolist() == [0, 1, 2, 3]
    assert xlpe_order([(1, 9), (2, 0)], 4).tolist() == [0, 3, 1, 2]


def test_pi_is_the_place_of_a_word_and_not_the_list_of_words():
    keys = [20, 0, 10]  # the words in their new order are 1, 2, 0
    assert ranks(keys).tolist() == xlpe_btg_order(keys)[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    'size', [*range(1, 6), *(pytest.param(size, marks=pytest.mark.full) for size in (6, 7))]
)
def test_how_many_orders_a_bracketing_grammar_reaches(size):
    count = 0
    for permutation in itertools.permutations(range(size)):
        places, cost = xlpe_btg_order(permutation)
        assert (cost == 0) == (places.tolist() == list(permutation)) == reachable(permutation)
        assert reachable(places.tolist())
        count += cost == 0
    assert count == GOLDEN['reached'][size - 1]


@pytest.mark.parametrize('permutation', GOLDEN['not_reached'], ids=str)
def test_the_nearest_order_is_one_pair_away(permutation):
    places, cost = xlpe_btg_order(permutation)
    wrong = sum(
        (permutation[a] < permutation[b]) != (places[a] < places[b])
        for a, b in itertools.combinations(range(4), 2)
    )
    assert cost == wrong == GOLDEN['cost']


def test_the_cost_is_the_smallest_number_of_pairs_out_of_order():
    rng = np.random.default_rng(0)
    targets = [p for p in itertools.permutations(range(5)) if reachable(p)]
    for _ in range(10):
        keys = rng.integers(0, 4, 5)  # some are equal
        pairs = list(itertools.combinations(range(5), 2))
        apart = lambda p: sum((keys[a] - keys[b]) * (p[a] - p[b]) < 0 for a, b in pairs)
        places, cost = xlpe_btg_order(keys)
        assert cost == apart(places) == min(map(apart, targets))


# The levels.


def test_the_input_level_by_numpy():
    encoding = pj.make('xlpe()', heads=HEADS, model_dim=D, rngs=nnx.Rngs(0))
    x, valid = draw(0, 1, L, D), np.arange(L)[None] < 5
    out = encoding.embed(x, placed(valid=valid))
    u, v = (np.asarray(a[...], np.float64) for a in (encoding.u, encoding.v))
    added = np.tanh(sinusoid(np.arange(L)) @ u.T + sinusoid(PI) @ v.T)
    np.testing.assert_allclose(out[0, :5], x[0, :5] + added[:5], atol=1e-6)
    np.testing.assert_array_equal(out[0, 5:], x[0, 5:])


@pytest.mark.full_where(condition=lambda tau, kv_heads: (tau, kv_heads) not in ((3, 4), (2, 2)))
@pytest.mark.parametrize('tau, kv_heads', [(None, 4), (0, 4), (3, 4), (4, 4), (None, 2), (2, 2)])
def test_the_head_level_projects_two_inputs(tau, kv_heads):
    sizes = dict(heads=HEADS, kv_heads=kv_heads, model_dim=D)
    encoding = pj.make(f'xlpe(level="head", tau={tau})', **sizes)
    assert not encoding.opens('embed') and not jax.tree.leaves(nnx.state(encoding, nnx.Param))
    x, w = draw(0, 1, L, D), {n: draw(i, D, n, 2) for i, n in enumerate({HEADS, kv_heads})}
    linear = lambda x: tuple(
        jnp.einsum('bld,dnh->blnh', x, w[n]) for n in (HEADS, kv_heads, kv_heads)
    )
    own, reordered = x + sinusoid(np.arange(L)), x + sinusoid(PI)
    for heads, a in zip((HEADS, kv_heads, kv_heads), encoding.qkv(x, linear, placed())):
        first = heads - (2 if tau is None else tau) * heads // HEADS
        for n in range(heads):
            expected = (own if n < first else reordered)[0] @ w[heads][:, n].astype(np.float64)
            np.testing.assert_allclose(a[0, :, n], expected, atol=1e-5)


@pytest.mark.parametrize('tau', [0, 1, 4])
def test_with_the_identity_the_head_level_is_sinusoidal(tau):
    x = draw(1, 1, L, D)
    expected = layer('sinusoidal()')(x)
    for missing, tok in (('error', placed(np.arange(L))), ('identity', None)):
        ours = layer(f'xlpe(level="head", tau={tau}, missing={missing!r})')
        np.testing.assert_allclose(ours(x, tok), expected, atol=1e-6)
    if tau:
        assert np.abs(layer(f'xlpe(level="head", tau={tau})')(x, placed()) - expected).max() > 1e-3


@pytest.mark.full
def test_an_encoder_reads_the_order_in_its_first_layer():
    """In later layers attention has no positions, and only the first level has parameters."""
    sizes = dict(vocab_size=7, train_len=L, width=D)
    pattern = 'xlpe(level="both")', 'nope()'
    model, ids = model_of('nope()', **sizes, kind='encoder', pattern=pattern), jnp.arange(L)[None]
    out = model(ids, placed())
    assert np.abs(out - model(ids, placed(PI[::-1]))).max() > 1e-2
    # Both orders move with the words.
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = pj.Tokens.of(positions=np.asarray(placed().pos)[:, order])
    np.testing.assert_allclose(model(ids[:, order], moved), out[:, order], atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize('level', ['input', 'head', 'both'])
def test_a_translation_reads_the_order_of_its_source(level):
    """The alignments of the task are orders that a bracketing grammar reaches, and the source side
    of an encoder-decoder reads them.
    """
    task = Translation(words=16, alignments=True)
    batch = task.sample(np.random.default_rng(0), 3, L)
    for pi in batch['source_positions'][..., 1]:
        pairs = list(enumerate(pi.tolist()))
        assert xlpe_order(pairs, L).tolist() == pi.tolist() and xlpe_btg_order(pi)[1] == 0
    sizes = dict(vocab_size=task.vocab_size, source_size=task.source_size, train_len=L, width=D)
    sizes |= dict(source_len=L, layers=1, source_layers=2, kind='encoder_decoder')
    model = model_of('sinusoidal()', source_encoding=f'xlpe(level={level!r})', **sizes)
    positions = batch['source_positions']
    read = lambda pos: model.encoded(jnp.asarray(batch['source']), pj.Tokens.of(positions=pos)).x
    assert np.abs(read(positions) - read(positions[:, :, [0, 0]])).max() > 1e-2
    with pytest.raises(ValueError, match='xlpe needs positions'):
        read(positions[..., 0])


# Wrong input.

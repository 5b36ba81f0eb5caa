"""What kernels do with tiles: which of them need no mask, and sums that Triton computes with the
products.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.kernels.program import Program
from posenc_jax.attention.kernels.visits import plan_apart, visits_of_keys, visits_of_queries
from posenc_jax.attention.tiles import Blocks, Plan
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.tokens import bounds
from tests import contract_test
from tests.attention.ring_test import MIXED

SIZE, LENGTH = 4, 24
PLAN = Plan(None, *[Blocks(SIZE, 1)] * 3, (), target='interpreter')
TEXTS = {
    'one document': {},
    'packed': dict(segment=jnp.repeat(jnp.arange(2), 12)[None]),
    'packed and padded': {name: a[:, :LENGTH] for name, a in MIXED.items()},
}
MASKS = ['full()', 'causal()', 'window(size=9)', 'document()', 'window(size=9, aligned=True)']


def tokens(text):
    return pj.Tokens.of(**text) if text else pj.Tokens.of(length=LENGTH)


def tiles(encoding, tok):
    """For each tile, whether all pairs are seen, whether one is, and what the bounds say."""
    parts = [tok.slice(n * SIZE, SIZE) for n in range(LENGTH // SIZE)]
    for i, tq in enumerate(parts):
        for j, tk in enumerate(parts):
            seen = encoding.mask(tq, tk)
            seen = np.ones((1, SIZE, SIZE), bool) if seen is None else np.asarray(seen)[0]
            told = bool(encoding.sees_all(bounds(tq), bounds(tk)))
            if tok.valid is not None:  # rows of queries that are padding have no meaning
                keys, queries = (np.asarray(part.valid[0]) for part in (tk, tq))
                seen = (seen & keys)[:, queries]
            yield i, j, seen.all(), seen.any(), told


@pytest.mark.parametrize('spec', MASKS)
@pytest.mark.parametrize('text', [name for name in TEXTS if 'padded' not in name])
def test_a_tile_is_full_where_the_bounds_say_so(spec, text):
    found = list(tiles(pj.make(spec), tokens(TEXTS[text])))
    for i, j, every, _, told in found:
        assert every or not told, (i, j)
        if 'aligned' not in spec:
            assert told == every, (i, j)


@pytest.mark.full
@pytest.mark.parametrize('entry', contract_test.ENTRIES, ids=contract_test.id_of)
def test_an_encoding_that_opens_a_mask_says_what_it_shows(entry):
    if entry.kind != 'encoding' or entry.key in contract_test.PLACED:
        pytest.skip('places are given by a task')
    for part in parts_of(contract_test.make(entry)):
        if type(part).sees_all is not pj.Encoding.sees_all:
            assert all(every or not told for _, _, every, _, told in tiles(part, tokens({})))
        elif part.opens('mask'):
            assert part.sees_all(None, None) is False


def test_a_mask_that_hides_more_than_its_base_class_promises_nothing():
    class Fewer(type(pj.make('window(size=9)'))):
        def allow(self, tq, tk):
            return super().allow(tq, tk) & (tk.index[:, None, None, :] % 2 == 0)

    assert Fewer(9).sees_all(None, None) is False


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('spec', ['alibi()', 'alibi() | window(size=9)'])
def test_visits_without_a_mask_are_those_of_full_tiles(spec, text):
    encoding, tok = pj.make(spec, causal=True, heads=2), tokens(TEXTS[text])
    encoding = pj.chain(encoding, pj.make('document()'))
    apart = plan_apart(PLAN, encoding, tok, tok)
    visits = visits_of_queries(PLAN, encoding, tok, tok, apart=apart)
    count = LENGTH // SIZE
    meets, full = (np.zeros((2, len(visits[0]), count, count), bool) for _ in range(2))
    for side, (order, total, masked) in enumerate((visits, visits_of_keys(visits))):
        for b, i in np.ndindex(order.shape[:2]):
            assert sorted(np.asarray(order[b, i]).tolist()) == list(range(count))
            meets[side, b, i, order[b, i, : total[b, i]]] = True
            full[side, b, i, order[b, i, masked[b, i] : total[b, i]]] = True
    np.testing.assert_array_equal(meets[1], meets[0].swapaxes(1, 2))
    np.testing.assert_array_equal(full[1], full[0].swapaxes(1, 2))
    assert full.any() and not full.all()
    for b in range(len(visits[0])):
        row = jax.tree.map(lambda a: a[b : b + 1] if len(a) > 1 else a, tok)
        for i, j, every, some, _ in tiles(encoding, row):
            assert meets[0, b, i, j] or not some, (b, i, j)
            assert every or not full[0, b, i, j], (b, i, j)


LOOK_UPS = (
    't5_rpe(buckets=4, max_distance=6)', 'shaw(max_distance=5)', 'urpe(buckets=4, max_distance=6)',
    'deberta(max_distance=5)', 'deberta(max_distance=6, buckets=4)',
)  # fmt: skip


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('spec', LOOK_UPS)
def test_look_ups_find_the_same_entry_in_uniform_tiles(spec, text):
    sizes = dict(heads=2, head_dim=8, model_dim=16, train_len=LENGTH)
    encoding, tok = pj.make(spec, causal=True, **sizes), tokens(TEXTS[text])
    plan = plan_apart(PLAN, encoding, tok, tok)
    assert plan.full and plan.uniform
    order, count, others = visits_of_queries(PLAN, encoding, tok, tok, apart=plan)
    apart = 0
    for b, i in np.ndindex(order.shape[:2]):
        row = jax.tree.map(lambda a: a[b : b + 1] if len(a) > 1 else a, tok)
        for j in order[b, i, others[b, i] : count[b, i]]:
            tq, tk = (row.slice(int(n) * SIZE, SIZE) for n in (i, j))
            assert all(part.valid is None or part.valid.all() for part in (tq, tk))
            distance = tq.pos[..., None] - tk.pos[:, None]
            assert distance.min() >= 5
            apart += 1
    assert apart


@pytest.mark.parametrize('spec', ['alibi()', 't5_rpe() | alibi()', 'rope() | window(size=9)'])
def test_no_tile_is_uniform_by_distances_or_without_look_ups(spec):
    tok = tokens({})
    encoding = pj.make(spec, causal=True, heads=2, head_dim=8)
    assert not plan_apart(PLAN, encoding, tok, tok).uniform


def test_fractional_positions_may_have_gradients():
    encoding, tok = pj.make(LOOK_UPS[0], heads=2, head_dim=8), tokens({})
    assert plan_apart(PLAN, encoding, tok, tok).uniform
    tok = dataclasses.replace(tok, pos=tok.pos.astype(jnp.float32))
    assert not plan_apart(PLAN, encoding, tok, tok).uniform


def test_an_encoding_that_reads_more_than_its_base_class_promises_no_uniform_tiles():
    class More(type(pj.make(LOOK_UPS[1], head_dim=8))):
        def collect(self, w, v, tq, tk):
            return super().collect(w * tk.index[:, None, None], v, tq, tk)

    tok = tokens({})
    assert not plan_apart(PLAN, More(5, head_dim=8, rngs=nnx.Rngs(0)), tok, tok).uniform


def test_a_product_is_added_to_a_sum_of_the_same_shape():
    def step(total, shrink, w, v):
        return total * shrink[..., None] + jnp.einsum('bkts,bksh->bkth', w, v)

    shape = lambda *sizes: jax.ShapeDtypeStruct((1, 1, *sizes), jnp.float32)
    program = Program('interpreter', step, shape(16, 32), shape(16), shape(16, 16), shape(16, 32))
    (product,) = [e for e in program._equations if e.primitive.name == 'dot_general']
    (total,) = [e for e in program._equations if product.outvars[0] in e.invars]
    assert total.primitive.name == 'add' and total.outvars[0].aval.shape == (16, 32)


def test_a_rounding_that_is_undone_is_left_out():
    def run(x):
        return jnp.swapaxes(x.astype(jnp.bfloat16), 0, 1)[None].astype(jnp.float32)

    x = jax.random.normal(jax.random.key(0), (4, 8))
    program = Program('interpreter', run, x)
    np.testing.assert_array_equal(program([], x), x.T)
    rounded = Program('interpreter', lambda x: x.astype(jnp.bfloat16), x)
    assert rounded([], x).dtype == jnp.bfloat16


def test_a_gpu_computes_exponentials_by_powers_of_two():
    program = Program('interpreter', jnp.exp, jnp.ones(4))
    names = [equation.primitive.name for equation in program._equations]
    assert 'exp2' in names and 'exp' not in names
    x = jnp.array([-1e30, -3.0, 0.0, 2.5])
    np.testing.assert_allclose(program([], x), np.exp(np.asarray(x, np.float64)), rtol=1e-6)

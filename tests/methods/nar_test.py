"""Near-to-far: mask and order by hand, skipped blocks, decoding by diagonals against one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding import nar
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.nar import DirectionHeads, draw_near_to_far, nar_logits, nar_sources
from posenc_jax.methods.nar import near_to_far_order, near_to_far_positions
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of

VALUES = golden('nar')['values']
# The ids of a grid are 0 .. 8, those of conditions 9 and 10.


def tokens(size, conditions=0):
    return pj.Tokens.of(positions=near_to_far_positions(size, conditions)[None])


@functools.cache
def network(axes):
    """A model of grids of so many axes, and its heads."""
    encoding = 'axial_rope2d() | nar()' if axes == 2 else 'md_lrpe(components=3) | nar()'
    return model_of(encoding, train_len=16), DirectionHeads(axes, 16, 9, rngs=nnx.Rngs(1))


def seen(tok):
    return np.asarray(pj.make('nar()').mask(tok, tok))[0, 0]


def test_the_mask_of_four_by_four():
    tok = tokens((4, 4))
    depth = np.asarray(tok.pos[0].sum(-1))
    np.testing.assert_array_equal(seen(tok), depth <= depth[:, None])


def row_sums(_):
    tok = tokens((4, 4))
    depth, sums = np.asarray(tok.pos[0].sum(-1)), seen(tok).sum(-1)
    return [sums[depth == number].mean() for number in range(7)]


test_golden = golden_suite('nar') | {
    'row_sums_by_diagonal': row_sums,
    'entries': lambda _: seen(tokens((4, 4))).sum(),
    'order_of_3_by_4': lambda _: near_to_far_order((3, 4)),
}


def test_conditions_are_causal_and_seen_by_all():
    both = seen(tokens((2, 3), conditions=3))
    np.testing.assert_array_equal(both[:3, :3], np.tril(np.ones((3, 3), bool)))
    assert both[3:, :3].all() and not both[:3, 3:].any()
    np.testing.assert_array_equal(both[3:, 3:], seen(tokens((2, 3))))


def test_the_order_and_its_inverse():
    order, cells = near_to_far_order((3, 4)), np.arange(12) * 10
    np.testing.assert_array_equal(cells[order][np.argsort(order)], cells)
    positions = near_to_far_positions((3, 4))
    np.testing.assert_array_equal(positions @ [4, 1], order)
    depth = near_to_far_positions((2, 3, 2)).sum(-1)
    assert (np.diff(depth) >= 0).all() and depth[-1] == 4
    for size in ((), (0, 3), (2.0, 3)):
        with pytest.raises(ValueError, match='integers of at least 1 as its size'):
            near_to_far_order(size)


def test_blocks_that_no_query_sees_are_skipped():
    part, tok = pj.make('nar()'), tokens((8, 8), conditions=2)
    pairs = seen(tok)
    blocks = [bounds(tok.slice(start, 6)) for start in range(0, 66, 6)]
    for i, own in enumerate(blocks):
        for j, other in enumerate(blocks):
            any_pair = pairs[6 * i : 6 * i + 6, 6 * j : 6 * j + 6].any()
            assert bool(part.may_see(own, other)) == any_pair, (i, j)
    # Conditions stay visible on a grid that was moved to negative places.
    conditions, cells = (
        bounds(pj.Tokens.of(positions=[pos])) for pos in ([[-1, -1]], [[-9, 0], [-8, 0]])
    )
    assert part.may_see(cells, conditions)


def test_sources_are_the_neighbours_before():
    size = (3, 4)
    positions, sources = near_to_far_positions(size), nar_sources(size)
    for cell, found in zip(positions, sources):
        for axis in range(2):
            if cell[axis] == 0:
                assert found[axis] == -1
            else:
                np.testing.assert_array_equal(positions[found[axis]], cell - np.eye(2)[axis])


def test_logits_are_means_over_heads():
    outputs = np.random.default_rng(0).standard_normal((1, 2 + 12, 2, 5)).astype(np.float32)
    inverse = np.argsort(near_to_far_order((3, 4)))
    found = np.asarray(nar_logits(jnp.asarray(outputs), (3, 4)))[0, inverse]
    place = 2 + inverse.reshape(3, 4)
    below, right = outputs[0, :, 0], outputs[0, :, 1]
    at = lambda r, c: found[4 * r + c]
    np.testing.assert_allclose(at(0, 0), (below[1] + right[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(at(0, 2), right[place[0, 1]], rtol=1e-6)
    np.testing.assert_allclose(at(2, 0), below[place[1, 0]], rtol=1e-6)
    expected = (below[place[0, 3]] + right[place[1, 2]]) / 2
    np.testing.assert_allclose(at(1, 3), expected, rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize('size', [(4, 4), (2, 2, 3)])
def test_diagonals_through_the_cache_equal_one_pass(size):
    model, heads = network(len(size))
    conditions = jnp.array([[9, 10], [10, 9]])
    out = draw_near_to_far(model, heads, conditions, size, temperature=0.0)
    assert out.tokens.shape == (2, *size) and out.evaluations == sum(size) - len(size) + 1
    ids = out.tokens.reshape(2, -1)[:, near_to_far_order(size)]
    text = jnp.concatenate([conditions, ids], axis=1)
    x = jax.jit(type(model).hidden)(model, text, tokens(size, conditions=2))
    logits = nar_logits(heads(x), size)
    np.testing.assert_array_equal(ids, logits.argmax(-1))
    assert len(np.unique(ids)) > 2
    # A key decides what is drawn.
    drawn, again = (
        draw_near_to_far(model, heads, conditions, size, key=jax.random.key(0)) for _ in range(2)
    )
    np.testing.assert_array_equal(drawn.tokens, again.tokens)
    assert (np.asarray(drawn.tokens) != np.asarray(out.tokens)).any()


def test_the_outputs_of_blocks_equal_those_of_one_pass():
    model, heads = network(2)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 9, (2, 18)))
    tok = tokens((4, 4), conditions=2)
    whole = heads(jax.jit(type(model).hidden)(model, ids, tok))
    graphdef, state = nnx.split((model, heads))
    found, cache = nar._conditions(graphdef, state, init_cache(model, tok), ids[:, :2])
    outputs, ends = [found], np.cumsum([1, 2, 3, 4, 3, 2, 1]) + 2
    for begin, end in zip([2, *ends], ends):
        found, cache = nar._diagonal(graphdef, state, cache, ids[:, begin:end])
        outputs.append(found)
    assert len(ends) == VALUES['steps']
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, atol=2e-5)


def test_wrong_values_are_refused():
    model, heads = network(2)
    conditions = jnp.array([[9]])
    draw = functools.partial(draw_near_to_far, temperature=0.0)
    plain, wide = model_of('axial_rope2d()', layers=1), DirectionHeads(2, 16, 12, rngs=nnx.Rngs(0))
    for arguments, message in (
        ((plain, heads, conditions, (2, 2)), r'needs the mask nar\(\)'),
        ((model, heads, conditions[:, :0], (2, 2)), 'at least one condition'),
        ((model, heads, conditions + 9, (2, 2)), 'token ids lie in 0 .. 10'),
        ((model, heads, conditions, (2, 2, 2)), r'needs 3 heads, got 2'),
        ((model, wide, conditions, (2, 2)), 'the heads predict 12 tokens, the model reads 11'),
    ):
        with pytest.raises(ValueError, match=message):
            draw(*arguments)
    with pytest.raises(ValueError, match='needs a key'):
        draw_near_to_far(model, heads, conditions, (2, 2))
    with pytest.raises(ValueError, match='at least 5 tokens'):
        nar_logits(jnp.ones((1, 4, 2, 3)), (2, 2))
    with pytest.raises(ValueError, match='positions'):
        pj.make('nar()').mask(pj.Tokens.of(length=3), pj.Tokens.of(length=3))

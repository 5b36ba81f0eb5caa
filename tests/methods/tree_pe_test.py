"""Tree positional encoding: codes by hand, the affine step to a child, paths of trees, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.tree_paths import CUT, complete_tree, tree_paths
from posenc_jax.methods.tree_pe import tree_pe_features, tree_pe_weights
from tests.golden_files import golden_suite
from tests.methods.pairs import draw
from tests.refusals import refused

RAW = jnp.arctanh(jnp.array([0.5]))


def code_by_hand(case):
    weights = tree_pe_weights(RAW, 2, 4)
    return tree_pe_features(jnp.array([[case['path']]]), 2, weights).ravel()


test_golden = golden_suite('tree_pe', rtol=1e-6) | {
    'weights': lambda: tree_pe_weights(RAW, 3, 8)[:, 0],
    'code': code_by_hand,
}


def make(arguments, width=24, seed=0):
    return pj.make(f'tree_pe({arguments})', model_dim=width, rngs=nnx.Rngs(seed))


def codes(part, paths, width=24):
    tok = pj.Tokens.of(positions=np.asarray(paths)[None])
    return np.asarray(part.embed(jnp.zeros((1, len(paths), width)), tok)[0])


def test_the_definition_entry_by_entry():
    """y[level, branch, f], the level slowest."""
    part = make('branches=3, levels=4')
    assert part.raw.shape == (2,)
    p = np.tanh(np.float64(part.raw[...]))
    paths = [[0, 0, 0, 0], [3, 0, 0, 0], [1, 2, 3, 1]]
    found = codes(part, paths)
    for path, code in zip(paths, found.reshape(3, 4, 3, 2)):
        for level, taken in enumerate(path):
            for branch in range(3):
                expected = (taken == branch + 1) * p**level * np.sqrt((1 - p**2) * 12)
                np.testing.assert_allclose(code[level, branch], expected, atol=1e-5)


def test_the_step_to_a_child_is_one_affine_map():
    """What is there moves one level further, times p."""
    part = make('levels=4, features=3')
    p = np.tanh(np.float64(part.raw[...]))
    parents, branches = [-1, 0, 0, 1, 1, 2, 3], [0, 1, 2, 1, 2, 2, 2]
    found = codes(part, tree_paths(parents, branches, levels=4)).reshape(-1, 4, 2, 3)
    np.testing.assert_array_equal(found[0], 0)
    first = found[1][0, 0]  # the code of branch 1 at the first level
    for node in range(1, 7):
        expected = np.zeros((4, 2, 3))
        expected[1:] = p * found[parents[node]][:-1]
        expected[0, branches[node] - 1] = first
        np.testing.assert_allclose(found[node], expected, atol=1e-6)


def test_nodes_that_differ_beyond_the_levels_have_one_code():
    parents, branches = [-1, 0, 0, 1, 2, 3, 4], [0, 1, 2, 1, 1, 2, 2]
    paths = tree_paths(parents, branches, levels=2, cut=True)
    found = codes(make('levels=2'), paths)
    np.testing.assert_array_equal(found[5], found[6])
    marked, short = paths[:, -1] > CUT, paths - [0, CUT]
    assert marked.tolist() == [node > 4 for node in range(7)]
    np.testing.assert_array_equal(found[marked], codes(make('levels=2'), short[marked]))
    whole = codes(make('levels=3'), tree_paths(parents, branches, levels=3))
    assert np.abs(whole[5] - whole[6]).max() > 1e-3


def test_trained_weights_may_be_negative_and_get_gradients():
    loss = lambda raw: (tree_pe_weights(raw, 4, 8) * draw(0, 4, 2)).sum()
    for raw in (jnp.array([-0.7, 0.3]), jnp.zeros(2)):
        p, slope = np.tanh(np.float64(raw)), np.asarray(jax.grad(loss)(raw))
        weights = np.stack([p**level for level in range(4)]) * np.sqrt((1 - p**2) * 4)
        np.testing.assert_allclose(tree_pe_weights(raw, 4, 8), weights, atol=1e-6)
        step = 1e-5
        up, down = (np.tanh(np.float64(raw) + sign * step) for sign in (1, -1))
        value = lambda p: np.stack([p**level for level in range(4)]) * np.sqrt((1 - p**2) * 4)
        expected = ((value(up) - value(down)) / (2 * step) * draw(0, 4, 2)).sum(0)
        np.testing.assert_allclose(slope, expected, atol=1e-4)


def test_weights_and_gradients_are_exact_where_tanh_rounds_to_one():
    for raw in (12.0, -12.0, 100.0):
        weights = lambda raw: tree_pe_weights(raw[None], 3, 8)[:, 0]
        values, slopes = weights(jnp.array(raw)), jax.jacrev(weights)(jnp.array(raw))
        p, rest = np.tanh(raw), 1 / np.cosh(raw)
        expected = 2 * rest * np.array([1.0, p, p**2])
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-40)
        # d rest = -p rest, and d p = rest^2.
        more = 2 * rest**3 * np.array([0.0, 1.0, 2 * p])
        np.testing.assert_allclose(slopes, -p * expected + more, rtol=1e-5, atol=1e-40)


def test_a_linear_map_joins_other_widths():
    part = make('levels=2, features=3', width=5)
    assert part.map is not None and part.map.shape == (12, 5)
    assert make('levels=4, features=3').map is None
    paths = np.array([[0, 0], [2, 1]])
    code = tree_pe_features(jnp.asarray(paths)[None], 2, tree_pe_weights(part.raw[...], 2, 5))
    expected = np.float64(code[0]) @ np.float64(part.map[...]) + np.float64(part.bias[...])
    np.testing.assert_allclose(codes(part, paths, width=5), expected, atol=1e-5)


def test_first_values_are_uniform():
    values = np.asarray(make('branches=1, levels=1', width=3000).raw[...])
    assert (
        np.abs(values).max() <= 0.001**0.5 and abs(np.abs(values).mean() / 0.001**0.5 - 0.5) < 0.05
    )


def test_complete_trees_have_each_path_once():
    paths = complete_tree(13, 3, levels=3)
    np.testing.assert_array_equal(paths[[0, 3, 4, 12]], [[0] * 3, [3, 0, 0], [1, 1, 0], [3, 3, 0]])
    assert len(set(map(tuple, paths))) == 13
    np.testing.assert_array_equal(make('levels=2').sample_positions(7)[0], complete_tree(7, 2, 2))


def test_paths_of_padding_are_not_read():
    part = make('levels=4')
    tok = pj.Tokens.of(positions=[[[1, 0, 0, 0], [9, 9, 9, 9]]], valid=[[True, False]])
    found = part.embed(jnp.ones((1, 2, 24)), tok)
    np.testing.assert_array_equal(found[0, 1], 1)


def test_traced_positions_that_are_no_paths_give_nan():
    part = make('levels=2')
    run = jax.jit(lambda pos: part.table(pj.Tokens.of(positions=pos), 24))
    found = np.asarray(run(jnp.array([[[1, 2], [0, 1], [3, 0]]])))
    np.testing.assert_array_equal(np.isnan(found).any(-1), [[False, True, True]])


def known(positions):
    return lambda: make('levels=2').table(pj.Tokens.of(positions=positions), 24)


test_wrong_calls = refused() | {
    r'tree_pe: \[3, 0\] is no path in a tree of 2 branches': known([[[1, 0], [3, 0]]]),
    r'needs integer positions \[B, L, 2\]': (known([[0, 1]]), known([[[0.5, 1.0]]])),
    'width 24, got 12': lambda: codes(make('levels=2'), [[0, 0]], width=12),
    r'levels \* branches = 10 entries, which must divide model_dim=24': lambda: make('levels=5'),
    'levels must be at least 1': lambda: make('levels=0'),
    'node 2 is more than levels=1 steps below its root': lambda: tree_paths(
        [-1, 0, 1], [0, 1, 1], levels=1
    ),
    'parent 5 is not in -1 .. 1': lambda: tree_paths([-1, 5], [0, 1], levels=1),
    'branch 0 of node 1 must be at least 1': lambda: tree_paths([-1, 0], [0, 0], levels=1),
    'branch 65536 of node 1 must be below 65536': lambda: tree_paths([-1, 0], [0, 2**16], levels=1),
    r'tree_pe: \[1, 65539\] is no path': known([[[1, 65539]]]),
    'lists of one length': lambda: tree_paths([-1, 0], [0], levels=1),
    'node 7 is more than levels=2 steps': lambda: complete_tree(8, 2, levels=2),
    # A ring has no root.
    'node 0 is more than levels=3 steps': lambda: tree_paths([1, 0], [1, 1], levels=3),
}

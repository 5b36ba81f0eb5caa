"""Algebraic positional encodings of trees: products by hand, relative ways, decay, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import posenc_jax as pj
from posenc_jax.methods import algebraic_tree as module
from posenc_jax.methods.tree_paths import root_first, tree_paths, tree_steps
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, qkv
from tests.methods.turns import turn_of
from tests.refusals import refused

algebraic_tree = jax.jit(module.algebraic_tree)
THIRD, FIRST = np.zeros((2, 3, 3), np.float32)
THIRD[0, 1], THIRD[1, 0] = -np.pi / 4, np.pi / 4  # half of a quarter of a turn about an axis
FIRST[1, 2], FIRST[2, 1] = -np.pi / 4, np.pi / 4
# A tree of two branches: the children of the root are nodes 1 and 2, those of node 1 are 3 and 4.
PARENTS, BRANCHES = [-1, 0, 0, 1, 1, 2, 2, 4], [0, 1, 2, 1, 2, 1, 2, 2]
PATHS = tree_paths(PARENTS, BRANCHES, levels=4)


def path(name):
    return [int(step) for step in name.split(',')]


def node_by_hand(_, name):
    b = jnp.stack([jnp.asarray(THIRD), jnp.asarray(FIRST)])[:, None]
    x = jnp.float32([1, 2, 3]).reshape(1, 1, 1, 3)
    return algebraic_tree(x, jnp.array([[path(name)]]), b).ravel()


def steps_by_hand(case):
    down = root_first(jnp.array([[path(name) for name in case['nodes']]]))
    return tree_steps(down, down)[0]


test_golden = golden_suite('algebraic_tree', atol=1e-5) | {
    'nodes.*': node_by_hand,
    'steps': steps_by_hand,
}


def make(arguments='levels=4', seed=None, kv_heads=2):
    part = pj.make(f'algebraic_tree({arguments})', head_dim=8, kv_heads=kv_heads)
    if seed is not None:
        part.b[...] = jnp.asarray(0.5 * draw(seed, *part.b.shape))
    return part


def matrix(b, node):
    """M of a node of the tree, in float64, from the root on."""
    if PARENTS[node] < 0:
        return np.eye(len(b[0]))
    own = np.float64(b[BRANCHES[node] - 1])
    return matrix(b, PARENTS[node]) @ scipy.linalg.expm(own - own.T).T


def test_nodes_are_multiplied_by_products_from_the_root_on():
    part, x = make(seed=0), draw(1, 1, 8, 4, 8)
    found = np.asarray(turn_of(part, x, pj.Tokens.of(positions=PATHS[None])))
    for node in range(8):
        for head in range(4):
            m = matrix(part.b[:, head // 2], node)
            np.testing.assert_allclose(found[0, node, head], m @ x[0, node, head], atol=2e-5)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_logits_see_the_way_through_the_common_ancestor_alone():
    q, k = draw(2, 1, 1, 1, 8).repeat(8, 1), draw(3, 1, 1, 1, 8).repeat(8, 1)
    part, tok = make(seed=4, kv_heads=1), pj.Tokens.of(positions=PATHS[None])
    both = [np.float64(turn_of(part, x, tok))[0, :, 0] for x in (q, k)]
    s = both[0] @ both[1].T
    same = lambda *pairs: np.ptp([s[pair] for pair in pairs]) < 1e-5
    assert same((1, 2), (3, 4), (5, 6))  # siblings 1 and 2
    assert same((0, 1), (1, 3), (2, 5)) and same((0, 2), (1, 4), (2, 6), (4, 7))  # parent to child
    assert not same((0, 4), (1, 7))  # a way of branches 1, 2 and one of 2, 2
    assert not same((1, 2), (2, 1)) and not same((0, 1), (0, 2))


def test_one_branch_is_a_sequence_that_is_turned_back():
    chain = tree_paths([-1, 0, 1, 2], [0, 1, 1, 1], levels=3)
    tree, x = make('branches=1, levels=3', seed=5), draw(6, 1, 4, 2, 8)
    sequence = pj.make('algebraic_pe()', head_dim=8, kv_heads=2)
    sequence.b[...] = tree.b[...].mT
    expected = turn_of(sequence, x, pj.Tokens.of(length=4))
    found = turn_of(tree, x, pj.Tokens.of(positions=chain[None]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_decay_multiplies_logits():
    tok, (q, k, v) = pj.Tokens.of(positions=PATHS[None]), qkv(8, heads=2)
    part = make('levels=4, decay=0.9')
    out = attend(pj.chain(part, pj.make('full()')), q, k, v, tok)
    ancestors = lambda node: [node, *(ancestors(PARENTS[node]) if PARENTS[node] >= 0 else [])]
    steps = np.array(
        [[len(set(ancestors(u)) ^ set(ancestors(v))) for v in range(8)] for u in range(8)]
    )
    turned = [np.float64(turn_of(make(), a, tok)) for a in (q, k)]
    s = np.einsum('bthf,bshf->bhts', *turned) / 8**0.5 * 0.9**steps
    w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum('bhts,bshf->bthf', w, v), atol=1e-5)
    assert part.opens('logits') and not make().opens('logits')


def test_tokens_in_front_of_a_tree_are_not_turned():
    beside = np.concatenate([np.full((1, 4), -1), PATHS])[None]
    x = draw(7, 1, 9, 2, 8)
    found = turn_of(make(seed=8), x, pj.Tokens.of(positions=beside))
    np.testing.assert_array_equal(found[:, :2], x[:, :2])


def test_traced_positions_that_are_no_paths_give_nan():
    part = make(seed=9)
    run = jax.jit(lambda x, pos: part.turned(x, pj.Tokens.of(positions=pos)))
    wrong = jnp.array([[[1, 0, 0, 0], [0, 1, 0, 0], [3, 0, 0, 0], [1, -1, 0, 0]]])
    found = np.asarray(run(draw(10, 1, 4, 2, 8), wrong))
    np.testing.assert_array_equal(np.isnan(found).any((2, 3)), [[False, True, True, True]])


def known(positions):
    tok = pj.Tokens.of(positions=positions)
    return lambda: make().turned(draw(0, 1, tok.length, 2, 8), tok)


test_wrong_calls = refused() | {
    r'algebraic_tree: \[3, 0, 0, 0\] is no path in a tree of 2 branches': known([[[3, 0, 0, 0]]]),
    'one that tree_paths has cut needs more levels': known(
        tree_paths([-1, 0, 1, 2, 3, 4], [0, 1, 1, 1, 1, 1], levels=4, cut=True)[None]
    ),
    r'\[0, 1, 0, 0\] is no path': known([[[1, 0, 0, 0], [0, 1, 0, 0]]]),
    r'needs integer positions \[B, L, 4\].* got int32 \(1, 1, 3\)': known([[[1, 0, 0]]]),
    'got float32': known(PATHS[None] / 2),
    'branches must be at least 1 and at most 256, got 0': lambda: make('branches=0'),
}

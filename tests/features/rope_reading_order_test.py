"""Reading-order codes: by hand, invariances, the graph of words, and the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs import rope_reading_order as module
from tests.golden_files import golden

GOLDEN = golden('rope_reading_order')['values']
RNG = np.random.default_rng(0)
ORDER = RNG.permutation(9)
NEAR = RNG.random((9, 9)) < 0.4
NEAR |= NEAR.T


def codes(order=ORDER, near=NEAR, origin='first'):
    return np.asarray(module.reading_order_codes(jnp.asarray(order), jnp.asarray(near), origin))


@pytest.mark.parametrize('origin', ['first', 'self'])
@pytest.mark.parametrize('case', ['dense', 'sparse'])
def test_golden_codes(case, origin):
    case = GOLDEN[case]
    near = np.zeros((8, 8), bool)
    near[case['word'], case['neighbours']] = True
    found = codes(np.arange(8), near, origin)[case['word']]
    assert found[case['neighbours']].tolist() == case[origin]


@pytest.mark.parametrize('origin', ['first', 'self'])
def test_codes_by_sorting_each_neighbourhood(origin):
    order = ORDER // 2  # with ties, which the index breaks
    found = codes(order, origin=origin)
    for i, row in enumerate(NEAR):
        members = sorted({i, *np.flatnonzero(row)}, key=lambda m: (order[m], m))
        start = members.index(i) if origin == 'self' else 0
        for rank, m in enumerate(members):
            assert found[i, m] == rank - start
        assert not found[i, [m for m in range(9) if m not in members]].any()


def test_only_the_order_within_a_neighbourhood_counts():
    same = codes(np.exp(ORDER / 3.0) + 7)  # any increasing relabelling
    np.testing.assert_array_equal(same, codes())
    # A word that is no neighbour of word 0 is removed, or read at another time.
    stranger = next(m for m in range(1, 9) if not NEAR[0, m])
    kept = np.delete(np.arange(9), stranger)
    np.testing.assert_array_equal(codes(ORDER[kept], NEAR[np.ix_(kept, kept)])[0], codes()[0, kept])
    moved = ORDER.astype(float)
    moved[stranger] = -5
    np.testing.assert_array_equal(codes(moved)[0], codes()[0])
    assert np.abs(codes(-ORDER) - codes()).max() > 0


def test_features_by_hand():
    c = jnp.array([[3]])
    expected = [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]
    np.testing.assert_allclose(module.reading_order_features(c, 4)[0, 0], expected, atol=1e-6)
    assert module.reading_order_features(c, 4, 'code').tolist() == [[[3.0]]]
    np.testing.assert_allclose(
        module.reading_order_features(c, 4, 'both')[0, 0], [*expected, 3], atol=1e-6
    )


def test_a_gabriel_graph_by_its_definition():
    points = np.random.default_rng(2).random((25, 2))
    joined = module.gabriel_graph(points)
    for i in range(25):
        for j in range(25):
            centre, radius = (points[i] + points[j]) / 2, np.linalg.norm(points[i] - points[j]) / 2
            others = np.delete(points, [i, j], axis=0)
            empty = (np.linalg.norm(others - centre, axis=1) >= radius).all()
            assert joined[i, j] == (i != j and empty)
    # It holds the nearest neighbour of every point, and is connected.
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(25)
    assert joined[np.arange(25), distance.argmin(1)].all()
    assert (np.linalg.matrix_power(np.eye(25) + joined, 25) > 0).all()
    square = module.gabriel_graph(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert square.sum() == 12  # the other two corners lie on the circle of a diagonal


def test_long_words_have_neighbours_along_their_boxes():
    boxes = np.array([[0, 0, 30, 1], [0, 2, 4, 3], [26, 2, 30, 3], [13, 1.5, 17, 2.5]])
    assert module.word_graph(boxes)[0].tolist() == [False, False, False, True]
    assert module.word_graph(boxes, points=9)[0].tolist() == [False, True, True, True]


@pytest.mark.full_but_one
@pytest.mark.parametrize('feature', ['sinusoid', 'code', 'both', 'none'])
def test_a_convolution_sees_the_order_by_the_codes_alone(feature):
    """The claim of the paper: what neighbours say depends on who of them is read first."""
    layer = module.ReadingOrderConvolution(4, 6, feature=feature, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(0), (9, 4))
    near = jnp.asarray(NEAR)
    out = layer(h, jnp.asarray(ORDER), near)
    turned = layer(h, jnp.asarray(-ORDER), near)
    assert (np.abs(out - turned).max() < 1e-6) == (feature == 'none')
    p = np.random.default_rng(1).permutation(9)
    np.testing.assert_allclose(layer(h[p], jnp.asarray(ORDER[p]), near[p][:, p]), out[p], atol=1e-5)
    gradient = jax.grad(lambda m: (m(h, jnp.asarray(ORDER), near) ** 2).sum())(layer)
    for leaf in jax.tree.leaves(nnx.state(gradient)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.full
def test_two_components_do_not_hear_each_other():
    near = jnp.asarray(np.kron(np.eye(2), np.ones((3, 3))) > 0)
    layer = module.ReadingOrderConvolution(4, rngs=nnx.Rngs(0))
    h, order = jax.random.normal(jax.random.key(0), (6, 4)), jnp.arange(6)
    other = layer(h.at[3:].set(0.0), order.at[3:].set(jnp.array([-1, -3, -2])), near)
    np.testing.assert_array_equal(other[:3], layer(h, order, near)[:3])

"""Reading-order codes: by hand, invariances, the graph of words, the convolution, and refused
arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.graphs.rope_reading_order import (
    ReadingOrderConvolution,
    gabriel_graph,
    reading_order_codes,
    reading_order_features,
    word_graph,
)
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('rope_reading_order')['values']
RNG = np.random.default_rng(0)
ORDER = RNG.permutation(9)
NEAR = RNG.random((9, 9)) < 0.4
NEAR |= NEAR.T


def codes(order=ORDER, near=NEAR, origin='first'):
    return np.asarray(reading_order_codes(jnp.asarray(order), jnp.asarray(near), origin))


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


def test_relabelled_nodes_have_permuted_codes():
    p = np.random.default_rng(1).permutation(9)
    np.testing.assert_array_equal(codes(ORDER[p], NEAR[np.ix_(p, p)]), codes()[np.ix_(p, p)])


def test_isolated_words_and_two_words():
    assert not codes(np.arange(3), np.zeros((3, 3), bool)).any()
    two = np.array([[False, True], [True, False]])
    assert codes(np.array([1, 0]), two).tolist() == [[1, 0], [1, 0]]
    assert codes(np.array([1, 0]), two, 'self').tolist() == [[0, -1], [1, 0]]


def test_features_by_hand():
    c = jnp.array([[3]])
    expected = [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]
    np.testing.assert_allclose(reading_order_features(c, 4)[0, 0], expected, atol=1e-6)
    assert reading_order_features(c, 4, 'code').tolist() == [[[3.0]]]
    np.testing.assert_allclose(
        reading_order_features(c, 4, 'both')[0, 0], [*expected, 3], atol=1e-6
    )


def test_a_gabriel_graph_by_its_definition():
    points = np.random.default_rng(2).random((25, 2))
    joined = gabriel_graph(points)
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
    square = gabriel_graph(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert square.sum() == 12  # the other two corners lie on the circle of a diagonal


def test_long_words_have_neighbours_along_their_boxes():
    boxes = np.array([[0, 0, 30, 1], [0, 2, 4, 3], [26, 2, 30, 3], [13, 1.5, 17, 2.5]])
    assert word_graph(boxes)[0].tolist() == [False, False, False, True]
    assert word_graph(boxes, points=9)[0].tolist() == [False, True, True, True]


@pytest.mark.full_but_one
@pytest.mark.parametrize('feature', ['sinusoid', 'code', 'both', 'none'])
def test_a_convolution_sees_the_order_by_the_codes_alone(feature):
    """The claim of the paper: what neighbours say depends on who of them is read first."""
    layer = ReadingOrderConvolution(4, 6, feature=feature, rngs=nnx.Rngs(0))
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
    layer = ReadingOrderConvolution(4, rngs=nnx.Rngs(0))
    h, order = jax.random.normal(jax.random.key(0), (6, 4)), jnp.arange(6)
    other = layer(h.at[3:].set(0.0), order.at[3:].set(jnp.array([-1, -3, -2])), near)
    np.testing.assert_array_equal(other[:3], layer(h, order, near)[:3])


def accuracy(feature):
    """Of a field whose label is the kind of that of its two neighbours which is read first."""
    rng = np.random.default_rng(3)
    forms, near = 200, jnp.asarray(np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]], bool))
    kind = rng.integers(0, 2, forms)  # of the first neighbour; the second is of the other kind
    h = np.zeros((forms, 3, 4), np.float32)
    h[:, 0, 2] = 1
    h[np.arange(forms), 1, kind] = h[np.arange(forms), 2, 1 - kind] = 1
    order = jnp.asarray(rng.permuted(np.tile(np.arange(3), (forms, 1)), axis=1))
    label = jnp.asarray(np.where(order[:, 1] < order[:, 2], kind, 1 - kind))
    layer = ReadingOrderConvolution(4, 6, feature=feature, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    read = jax.random.normal(jax.random.key(1), (4, 2))

    def logits(state, h, order):
        layer = nnx.merge(graphdef, state)
        return jax.vmap(lambda h, r: layer(h, r, near)[0])(h, order) @ read

    def loss(state):
        log_p = jax.nn.log_softmax(logits(state, jnp.asarray(h[:100]), order[:100]))
        return -jnp.take_along_axis(log_p, label[:100, None], axis=1).mean()

    step = lambda state, _: (
        jax.tree.map(lambda a, g: a - 0.5 * g, state, jax.grad(loss)(state)),
        0,
    )
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=300))(state)
    found = logits(state, jnp.asarray(h[100:]), order[100:]).argmax(-1)
    return float((found == label[100:]).mean())


@pytest.mark.full
def test_forms_whose_labels_depend_on_who_is_read_first():
    assert accuracy('sinusoid') > 0.95
    assert accuracy('none') < 0.65


def test_wrong_values_are_refused():
    with pytest.raises(SpecError, match="did you mean 'first'"):
        codes(origin='fist')
    with pytest.raises(SpecError, match="feature is 'sine'"):
        reading_order_features(jnp.zeros((1, 1), int), 4, 'sine')
    with pytest.raises(ValueError, match=r'order of 9 words, \[9\], got \(8,\)'):
        codes(np.arange(8))
    with pytest.raises(ValueError, match='at least 1 point in a box, got 0'):
        word_graph(np.array([[0, 0, 1, 1]]), points=0)
    with pytest.raises(ValueError, match=r'left, top, right, bottom, got \[2.0, 0.0, 1.0, 1.0\]'):
        word_graph(np.array([[2, 0, 1, 1]]))
    with pytest.raises(ValueError, match='code_width of at least 2, got 4 and 1'):
        ReadingOrderConvolution(4, 1, rngs=nnx.Rngs(0))

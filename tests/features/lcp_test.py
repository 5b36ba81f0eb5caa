"""Local curvature profiles: curvatures by hand, two ways of transport, bounds, statistics, what
they tell apart.
"""

import numpy as np

from posenc_jax.features.graphs import curvature, make_graph_features
from posenc_jax.features.graphs import curvature as module
from posenc_jax.features.graphs.adjacency import edges_of
from posenc_jax.features.graphs.lcp import bound_profile, lcp_profile
from posenc_jax.lab.tasks.graphs import BLIND_PAIRS, blind_pair, random_graph
from posenc_jax.lab.tasks.graphs.named import (
    circulant,
    complete,
    disjoint,
    from_edges,
    rook,
    shrikhande,
)
from tests.golden_files import golden_suite

GRAPH = random_graph(np.random.default_rng(2), 11, 0.4).astype(float)
PETERSEN = from_edges(
    10,
    [
        *((i, (i + 1) % 5) for i in range(5)),
        *((i, i + 5) for i in range(5)),
        *((5 + i, 5 + (i + 2) % 5) for i in range(5)),
    ],
)
PATH = from_edges(4, [(0, 1), (1, 2), (2, 3)]).astype(float)
BARBELL = disjoint(complete(4), complete(1), complete(4)) | from_edges(9, [(3, 4), (4, 5)])


def orc(graph):
    return module.ollivier_ricci(graph.astype(float))


def profile(node):
    return make_graph_features('lcp()').encode(BARBELL)[node]


def complete_4(kind):
    return module.forman_ricci(complete(4).astype(float), kind)


def of_edge():
    ends = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 4), (1, 5), (1, 6), (1, 7)]
    return [bound[0] for bound in module.ollivier_bounds(from_edges(8, ends).astype(float))]


test_golden = golden_suite('lcp', atol=1e-8) | {
    'complete.*': lambda _, n: orc(complete(int(n))),
    'petersen': lambda: orc(PETERSEN),
    'rook': lambda: orc(rook()),
    'shrikhande': lambda: orc(shrikhande()),
    'barbell_inside': (lambda: profile(0), {'atol': 1e-6}),
    'barbell_port': (lambda: profile(3), {'atol': 1e-6}),
    'barbell_bridge': (lambda: profile(4), {'atol': 1e-6}),
    'forman_complete_4.*': (lambda _, kind: complete_4(kind), {}),
    'forman_path_end': (lambda: module.forman_ricci(PATH)[0], {}),
    'bounds': of_edge,
}


def test_a_mirrored_barbell_has_the_same_profiles():
    found = make_graph_features('lcp()').encode(BARBELL)
    np.testing.assert_array_equal(found, found[::-1])


def grid(rows, columns):
    place = lambda r, c: r * columns + c
    return from_edges(
        rows * columns,
        [(place(r, c), place(r, c + 1)) for r in range(rows) for c in range(columns - 1)]
        + [(place(r, c), place(r + 1, c)) for r in range(rows - 1) for c in range(columns)],
    )


def test_flat_graphs():
    path = from_edges(5, [(i, i + 1) for i in range(4)])
    star = from_edges(5, [(0, i) for i in range(1, 5)])
    for graph in (circulant(4), circulant(5), circulant(6), path, star, grid(3, 4)):
        np.testing.assert_allclose(orc(graph), 0, atol=1e-12)


def test_triangles_and_squares_are_counted_one_by_one():
    degrees = GRAPH.sum(1)
    for kind in ('afrc3', 'afrc4'):
        for (u, v), value in zip(edges_of(GRAPH), module.forman_ricci(GRAPH, kind)):
            of_u, of_v = (np.flatnonzero(GRAPH[node]) for node in (u, v))
            triangles = len(set(of_u) & set(of_v))
            squares = sum(GRAPH[w, x] for w in of_u for x in of_v if w != v and x != u and w != x)
            wanted = 4 - degrees[u] - degrees[v] + 3 * triangles
            assert value == wanted + (2 * squares if kind == 'afrc4' else 0)


def test_hops():
    hops = module.near_distances(GRAPH)
    reached, wanted = np.eye(11) > 0, np.full((11, 11), 3)
    for step in (0, 1, 2):
        wanted[reached & (wanted == 3)] = step
        reached = reached | (reached.astype(float) @ GRAPH > 0)
    np.testing.assert_array_equal(hops, wanted)


def test_two_ways_of_transport_agree():
    rng = np.random.default_rng(0)
    for a, b in ((1, 1), (1, 4), (3, 5), (4, 6), (7, 7)):
        cost = rng.integers(0, 4, (a, b)).astype(float)
        rows, columns = np.full(a, b), np.full(b, a)
        program = module.transport_by_program(cost, rows / (a * b), columns / (a * b))
        found = module.transport_by_assignment(cost, rows, columns)
        np.testing.assert_allclose(found / (a * b), program, atol=1e-12)


def test_large_degrees_take_the_program(monkeypatch):
    exact = module.ollivier_ricci(GRAPH)
    monkeypatch.setattr(curvature, 'LARGEST_ASSIGNMENT', 0)
    monkeypatch.setattr(curvature, 'transport_by_assignment', None)
    np.testing.assert_allclose(module.ollivier_ricci(GRAPH), exact, atol=1e-9)


def test_laziness():
    """`k_alpha / (1 - alpha)` is the same for all alpha from 1 / (max degree + 1) on (Bourne et
    al., "Ollivier-Ricci idleness functions of graphs"); as alpha comes near 0, k_alpha comes near
    k_0.
    """
    np.testing.assert_allclose(
        module.ollivier_ricci(GRAPH, 1e-9), module.ollivier_ricci(GRAPH), atol=1e-7
    )
    half, more = module.ollivier_ricci(GRAPH, 0.5), module.ollivier_ricci(GRAPH, 0.8)
    np.testing.assert_allclose(half / 0.5, more / 0.2, atol=1e-7)
    # By hand for K_n: the mass that moves from u to v is alpha - (1 - alpha) / (n - 1).
    found = make_graph_features('lcp(alpha=0.5)').encode(complete(4))
    np.testing.assert_allclose(found[:, 0], 1 - (0.5 - 0.5 / 3), atol=1e-6)


def test_curvature_is_bounded():
    exact, (lower, upper) = module.ollivier_ricci(GRAPH), module.ollivier_bounds(GRAPH)
    assert (lower <= exact + 1e-12).all() and (exact <= upper + 1e-12).all() and upper.max() <= 1
    assert (lower < exact - 0.1).any() and (exact < upper - 0.1).any()
    found = make_graph_features("lcp(curvature='orc_approx')").encode(GRAPH)
    for node in range(11):
        own = (edges_of(GRAPH) == node).any(1)
        np.testing.assert_allclose(found[node], [lower[own].min(), upper[own].max()], atol=1e-6)


def test_statistics_by_hand():
    edges = np.array([[0, i] for i in range(1, 8)])
    values = np.array([4.0, 1.0, 3.0, 9.0, -2.0, 0.0, 6.0])
    found = lcp_profile(9, edges, values)
    np.testing.assert_allclose(found[0], [-2, 9, 3, np.std(values), 3])
    assert found[3].tolist() == [3, 3, 3, 0, 3] and not found[8].any()
    even = lcp_profile(5, edges[:4], values[:4])[0]
    assert even[4] == 3.5
    alt = lambda count: lcp_profile(9, edges[:count], values[:count], alt=True)[0].tolist()
    assert alt(7) == [-2, 0, 1, 6, 9] and alt(5) == [-2, 1, 3, 4, 9]
    assert alt(6) == [-2, 0, 1, 4, 9] and alt(2) == [1, 4, 0, 0, 0]
    assert bound_profile(3, edges[:1], values[:1], values[1:2]).tolist() == [[4, 1], [4, 1], [0, 0]]


def test_what_it_tells_apart():
    """The claim of the paper: it tells pairs apart that 1-WL and random walks cannot."""
    encoder = make_graph_features('lcp()')
    told = {
        name
        for name in BLIND_PAIRS
        for one, other in [[np.sort(encoder.encode(g), axis=0) for g in blind_pair(name)]]
        if np.abs(one - other).max() > 1e-3
    }
    # Cycles are flat, whatever their length.
    assert told == BLIND_PAIRS.keys() - {'squares_octagon'}

"""Graphs as data: blind pairs, random graphs and triangles against networkx or a count one by one,
batches of unequal size, and edge lists of a user.
"""

import itertools
import pathlib

import numpy as np
import pytest

from posenc_jax.base import memory
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.lab.tasks.graphs import (
    BLIND_PAIRS,
    blind_pair,
    community_graph,
    community_samples,
    edge_lists,
    graph_triangles,
    node_triangles,
    pad_graphs,
    pad_nodes,
    random_graph,
    random_regular,
    read_edge_list,
    read_graphs,
    rewired,
)
from posenc_jax.lab.tasks.graphs.edge_lists import read_labels
from posenc_jax.lab.tasks.graphs.named import (
    circulant,
    complete,
    from_edges,
    refined_colours,
    relabelled,
    same_colours,
)
from posenc_jax.lab.tasks.graphs.tasks import BlindPairs


def rng(seed=0):
    return np.random.default_rng(seed)


def is_graph(adjacency):
    loops, both_ways = np.diagonal(adjacency).any(), (adjacency == adjacency.T).all()
    return adjacency.dtype == bool and not loops and both_ways


@pytest.mark.parametrize('name', BLIND_PAIRS)
def test_blind_pairs_are_blind_and_not_isomorphic(name):
    nx = pytest.importorskip('networkx')
    one, other = blind_pair(name)
    assert is_graph(one) and is_graph(other) and same_colours(one, other)
    one, other = (nx.from_numpy_array(graph) for graph in (one, other))
    assert not nx.is_isomorphic(one, other)
    if name == 'rook_shrikhande':
        assert nx.is_strongly_regular(one) and nx.is_strongly_regular(other)
        board = nx.line_graph(nx.complete_bipartite_graph(4, 4))
        assert nx.is_isomorphic(one, board)


def test_colours_of_a_tree_by_hand():
    tree = from_edges(6, [(0, 1), (1, 2), (2, 3), (3, 4), (2, 5)])
    colours = refined_colours(tree)
    assert colours[0] == colours[4] != colours[5] and colours[1] == colours[3] != colours[2]
    assert len(set(colours.tolist())) == 4
    assert refined_colours(circulant(7)).tolist() == [0] * 7
    assert same_colours(tree, relabelled(rng(), tree)) and not same_colours(tree, circulant(6))


def test_samples_of_a_pair_are_copies_in_random_order():
    graphs, labels = BlindPairs('decalin_bicyclopentyl').graphs(rng(), 40, 1, 1)
    both = blind_pair('decalin_bicyclopentyl')
    walks = make_graph_features('rwse()')
    of = lambda graph: np.sort(walks.encode(graph).round(5), axis=0)
    for graph, label in zip(graphs, labels):
        np.testing.assert_allclose(of(graph), of(both[label]), atol=1e-4)
    assert 10 < sum(labels) < 30 and len({graph.tobytes() for graph in graphs}) == 40


def test_regular_graphs():
    for n, degree in ((1, 0), (2, 1), (6, 5), (9, 4), (12, 3), (20, 13)):
        graph = random_regular(rng(n), n, degree)
        assert is_graph(graph) and (graph.sum(1) == degree).all()
    # Of the 70 labelled graphs of 6 nodes of degree 3, 10 are bipartite and 60 are prisms.
    draw = rng(1)
    drawn = [random_regular(draw, 6, 3) for _ in range(2000)]
    assert len({graph.tobytes() for graph in drawn}) == 70
    bipartite = np.mean([graph_triangles(graph) == 0 for graph in drawn])
    assert abs(bipartite - 1 / 7) < 0.05


def test_rewiring_keeps_degrees_and_dissolves_communities():
    before = community_graph(rng(), 2, 12, 0.7, 0.05)
    after = rewired(rng(1), before)
    assert is_graph(after)
    np.testing.assert_array_equal(after.sum(1), before.sum(1))
    across = lambda graph: graph[:12, 12:].sum() / (graph.sum() / 2)
    assert across(before) < 0.1 and across(after) > 0.35
    np.testing.assert_array_equal(rewired(rng(), before, swaps=0), before)
    np.testing.assert_array_equal(rewired(rng(), complete(5)), complete(5))
    assert not rewired(rng(), np.zeros((3, 3), bool)).any()


def test_communities_and_graphs_of_their_degrees():
    graphs, labels = community_samples(rng(), 60, size=10)
    assert all(map(is_graph, graphs)) and 15 < labels.sum() < 45
    # The second eigenvector of A splits communities: its value is larger.
    second = np.array([np.linalg.eigvalsh(graph.astype(float))[-2] for graph in graphs])
    best = max(((second > cut) == labels).mean() for cut in second)
    assert best > 0.9
    # The degrees, which a sum over neighbours sees, say nothing.
    of_class = [np.mean([g.sum() / 20 for g, l in zip(graphs, labels) if l == c]) for c in (0, 1)]
    assert abs(of_class[0] - of_class[1]) < 0.3


def test_random_graphs_have_their_density():
    graph = random_graph(rng(), 60, 0.3)
    assert is_graph(graph) and abs(graph.mean() - 0.3) < 0.05
    assert not random_graph(rng(), 5, 0.0).any()


def test_triangles_are_counted_one_by_one():
    graph = random_graph(rng(4), 9, 0.6)
    wanted = np.zeros(9, int)
    for a, b, c in itertools.combinations(range(9), 3):
        if graph[a, b] and graph[b, c] and graph[a, c]:
            wanted[[a, b, c]] += 1
    np.testing.assert_array_equal(node_triangles(graph), wanted)
    assert graph_triangles(graph) == wanted.sum() // 3 > 5
    assert graph_triangles(complete(6)) == 20 and node_triangles(np.zeros((1, 1))).tolist() == [0]


def test_batches_of_unequal_graphs():
    graphs = [complete(3), circulant(5), np.zeros((1, 1), bool)]
    encoder = make_graph_features('lcp() | rfp(features=2, steps=1, draws=2, pad=True)')
    batch = pad_graphs(graphs, [encoder.encode(graph) for graph in graphs], nodes=6)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        'features': ((3, 6, 9), 'float32'),
        'adjacency': ((3, 6, 6), 'bool'),
        'valid': ((3, 6), 'bool'),
    }
    assert batch['valid'].sum(1).tolist() == [3, 5, 1]
    for row, graph in enumerate(graphs):
        n = len(graph)
        np.testing.assert_array_equal(batch['features'][row, :n], encoder.encode(graph))
        np.testing.assert_array_equal(batch['adjacency'][row, :n, :n], graph)
        assert not batch['features'][row, n:].any() and not batch['adjacency'][row, n:].any()
    draws = pad_graphs(graphs, [encoder.encode_draws(graph) for graph in graphs])
    assert draws['features'].shape == (3, 2, 5, 9) and draws['valid'].shape == (3, 5)
    counts = pad_nodes([node_triangles(graph) for graph in graphs], 5)
    assert counts.tolist() == [[1, 1, 1, 0, 0], [0] * 5, [0] * 5]


ONE, THREE = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)  # features of a graph
ONE_WAY = np.array([[0, 1], [0, 0]])
REFUSED = {  # what the message says -> what is refused
    "blind pair is 'rooks'; did you mean 'rook_shrikhande'": lambda: blind_pair('rooks'),
    r'different nodes of 0 .. 2, got \(1, 1\)': lambda: from_edges(3, [(1, 1)]),
    r'different nodes of 0 .. 2, got \(0, 3\)': lambda: from_edges(3, [(0, 3)]),
    'distances are 1 .. 3, got 4': lambda: circulant(6, (1, 4)),
    '0 <= degree < n, got 4 nodes of degree 4': lambda: random_regular(rng(), 4, 4),
    'have 15 ends of edges, an odd number': lambda: random_regular(rng(), 5, 3),
    'probability must lie in 0 .. 1, got 1.5': lambda: random_graph(rng(), 3, 1.5),
    'at least 1 node, got 0': lambda: random_graph(rng(), 0, 0.5),
    'at least 1 group and 1 node, got 0 and 3': lambda: community_graph(rng(), 0, 3, 0.5, 0.5),
    'between must lie in 0 .. 1, got nan': lambda: community_graph(rng(), 1, 3, 0.5, float('nan')),
    'at least one graph, got none': lambda: pad_graphs([], []),
    '1 graphs, but features of 2': lambda: pad_graphs([complete(2)], [ONE] * 2),
    r'graph 1 has 3 nodes, but features of shape \(2, 3\)': lambda: padded(complete(3), ONE),
    'graph 1 has 3 nodes, and the batch has room for 2': lambda: padded(
        complete(3), THREE, nodes=2
    ),
    r'graph 1 has values of shape \(3, 4\), graph 0 has': lambda: padded(
        complete(3), np.ones((3, 4), np.float32)
    ),
    r'graph 1: adjacency\[0, 1\] is 1, but adjacency\[1, 0\] is 0': lambda: padded(ONE_WAY, ONE),
    r'graph 1: adjacency\[0, 1\] is 0.5, expected 0 or 1': lambda: padded(complete(2) * 0.5, ONE),
    'graph 1: the graph is empty': lambda: padded(np.zeros((0, 0)), ONE[:0]),
    r'graph 1: an adjacency is a square matrix \[n, n\], .* \(2, 3\)': lambda: padded(
        np.zeros((2, 3)), ONE
    ),
}


def padded(graph, features, **nodes):
    """A batch of a graph that is right and of another one."""
    return pad_graphs([complete(2), graph], [ONE, features], **nodes)


@pytest.mark.parametrize('message', REFUSED)
def test_wrong_graphs_and_batches_are_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def folder(path, **files):
    for name, text in files.items():
        (path / f'{name}.txt').write_text(text)
    return path


def test_a_folder_of_edge_lists(tmp_path):
    lists = dict(b='1 2\n2 3 # a comment\n\n3 2\n9\n', a='# one\n0 1\n')
    found = read_graphs(folder(tmp_path, **lists, labels='a 1\nb 0\n'))
    assert [(graph.name, graph.label) for graph in found] == [('a', 1), ('b', 0)]
    assert type(found[0].label) is int
    _, graph = found
    assert graph.ids.tolist() == [1, 2, 3, 9] and is_graph(graph.adjacency)
    np.testing.assert_array_equal(graph.adjacency, from_edges(4, [(0, 1), (1, 2)]))
    (tmp_path / 'labels.txt').unlink()
    assert [graph.label for graph in read_graphs(str(tmp_path))] == [None, None]
    (tmp_path / 'values.txt').write_text('a 1\nb -0.5\n')
    found = read_graphs(tmp_path, labels='values.txt')
    assert [(graph.name, graph.label) for graph in found] == [('a', 1.0), ('b', -0.5)]
    assert read_edge_list(tmp_path / 'a.txt').ids.tolist() == [0, 1]


WRONG = [  # file, its text, and what the message says behind its name
    ('bad', '0 1\n1 2 3\n', 'line 2: 3 words, expected an edge "u v", or one node: \'1 2 3\''),
    ('bad', '0 1\n\n1 x\n', "line 3: 'x' is no node id, expected a whole number"),
    ('bad', '0 -1\n', "line 1: '-1' is no node id"),
    ('bad', '0 1.0\n', "line 1: '1.0' is no node id"),
    ('bad', '0 1234567890123456789\n', "line 1: '1234567890123456789' is no node id.*18 digits"),
    ('bad', '0 1\n4 4\n', 'line 2: node 4 is joined to itself'),
    ('bad', '0 1\n1 0\n0 1\n', 'line 3: the edge 0 1 is also in line 1'),
    ('bad', '# nothing\n', 'has no nodes; expected an edge "u v" a line'),
    ('bad', '0 1\n\0', 'is not text: byte 4 is NUL'),
    ('bad', '\n'.join(map(str, range(20000))), 'has 20000 nodes; at most 16384 are accepted'),
    ('labels', 'a 1\na\n', 'line 2: 1 words, expected "name label"'),
    ('labels', 'a high\n', "line 1: the label 'high' is no finite number"),
    ('labels', 'a nan\n', "line 1: the label 'nan' is no finite number"),
    ('labels', 'a 1\na 2\n', "line 2: a second label of 'a'"),
    ('labels', 'a 1\nbb 1\nc 2\n', "'c' is no graph of the folder; valid: 'a', 'bb'"),
    ('labels', 'a 1\n', "the graph 'bb' has no label"),
    ('nodes', 'a 1\n', 'line 1: 2 words, expected "graph node class"'),
    ('nodes', 'a x 0\n', "line 1: 'x' is no node id"),
    ('nodes', 'a 1 -1\n', "line 1: '-1' is no class, expected a whole number"),
    ('nodes', 'a 1 0\na 1 2\n', "line 2: a second class of node 1 of 'a'"),
    ('nodes', 'b 1 0\n', "'b' is no graph of the folder"),
    ('nodes', '', "the graph 'a' has no label"),
    ('nodes', 'a 1 0\na 2 0\n', "the graph 'a' has no node 2"),
    ('nodes', 'a 3 0\n', "node 1 of the graph 'a' has no class"),
]
BESIDE = {'bad': {}, 'labels': dict(a='0 1\n', bb='0 1\n'), 'nodes': dict(a='3 1\n')}


@pytest.mark.parametrize('name, text, message', WRONG)
def test_wrong_files_are_named_with_their_lines(tmp_path, name, text, message):
    folder(tmp_path, **BESIDE[name], **{name: text})
    with pytest.raises(ValueError, match=f'{name}.txt.*({message})'):
        read_graphs(tmp_path)


def test_nodes_have_the_classes_of_their_file(tmp_path):
    (graph,) = read_graphs(folder(tmp_path, a='3 1\n', nodes='a 1 0\na 3 2\n'))
    assert (graph.classes.tolist(), graph.label) == ([0, 2], None)


def test_graphs_that_are_too_large_together_are_refused_before_they_are_made(tmp_path, monkeypatch):
    nodes = '\n'.join(map(str, range(64)))
    folder(tmp_path, **{f'g{i}': nodes for i in range(40)})
    pairs = (40 + 13) * 64**2  # of all graphs, and of a batch of one
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * pairs)
    assert len(read_graphs(tmp_path)) == 40
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * pairs - 2)
    monkeypatch.setattr(edge_lists, '_with_adjacency', lambda *_: pytest.fail('a graph was made'))
    said = '40 graphs of up to 64 nodes would take 212 KiB of memory; .*; give fewer or smaller'
    with pytest.raises(ValueError, match=said):
        read_graphs(tmp_path)


@pytest.mark.parametrize('name', ['a', 'labels', 'nodes'])
def test_lists_that_are_too_large_are_refused_before_they_are_read(tmp_path, name):
    folder(tmp_path, a='0 1\n')
    with (tmp_path / f'{name}.txt').open('wb') as file:
        file.truncate(2**40)
    said = rf'{name}\.txt of 1099511627776 bytes would take 32 TiB of memory; .*; give smaller'
    with pytest.raises(ValueError, match=said):
        read_graphs(tmp_path)


def test_names_of_lists_are_on_one_line(tmp_path):
    (tmp_path / 'x\n\x1b[31m.txt').write_text('a b c\n')
    with pytest.raises(ValueError, match=r'/x\\n\\x1b\[31m\.txt, line 1: 3 words') as found:
        read_graphs(tmp_path)
    assert str(found.value).isprintable()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
        read_graphs(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'has no edge lists; expected files \*.txt'):
        read_graphs(tmp_path)
    with pytest.raises(FileNotFoundError, match='no file .*classes.txt'):
        read_graphs(folder(tmp_path, a='0 1\n'), labels='classes.txt')
    with pytest.raises(FileNotFoundError):
        read_edge_list(pathlib.Path(tmp_path, 'none.txt'))
    assert read_labels(folder(tmp_path, empty='') / 'empty.txt') == {}

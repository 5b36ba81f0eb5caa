"""Tasks on graphs, and the layers that read the edges of a graph."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.inputs import inputs_of, tokens_of
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.tasks.graphs.named import refined_colours
from posenc_jax.lab.tasks.graphs.tasks import (
    SKIPS,
    BlindPairs,
    Communities,
    EdgeLists,
    SkipLinks,
    Triangles,
)
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.mixers.gin import GIN
from posenc_jax.mixers.graph_attention import GraphAttention
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens


def rng():
    return batch_rng(0, 'train', 0)


def model_of(pattern, channels, pool='mean', layers=2, features=''):
    cfg = TransformerConfig(
        vocab_size=0, channels=channels, output_size=2, train_len=6, layers=layers, width=8,
        heads=2, kind='encoder', encoding='', pattern=(pattern,), pool=pool, features=features,
    )  # fmt: skip
    return Transformer(cfg, rngs=nnx.Rngs(0))


def test_pairs_look_alike_to_colour_refinement_and_not_to_curvature():
    batch = BlindPairs(features='lcp()').sample(rng(), 8, 2)
    assert batch['vectors'].shape == (8, 32, 6) and batch['valid'].all()
    for edges, vectors, (label,) in zip(batch['adjacency'], batch['vectors'], batch['targets']):
        assert (edges == edges.T).all() and (edges.sum(1) == 6).all()
        assert len(set(refined_colours(edges).tolist())) == 1
        np.testing.assert_allclose(vectors[:, 1], vectors[0, 1], atol=1e-6)
        assert (vectors[0, 1] > 0) == (label == 0)  # curvatures of 1/3 and 1/6, standardised


def test_no_two_circular_skip_link_graphs_are_the_same():
    """Multiplying all nodes by a number maps the circle to links of this length; so two of these
    graphs are one if the product of their links is 1 or -1 modulo the nodes.
    """
    assert {1, 40}.isdisjoint(a * b % 41 for a in SKIPS for b in SKIPS if a != b)
    of_all = {*SKIPS, *(pow(skip, -1, 41) for skip in SKIPS)}
    assert of_all | {41 - skip for skip in of_all} == {*range(2, 40)}
    batch = SkipLinks().sample(rng(), 40, 1)
    rounds = {}
    for edges, (label,) in zip(batch['adjacency'], batch['targets']):
        assert (edges.sum(1) == 4).all() and len(set(refined_colours(edges).tolist())) == 1
        rounds.setdefault(label, set()).add(np.trace(np.linalg.matrix_power(edges, 11)))
    assert {*rounds} == {*range(10)} and all(len(found) == 1 for found in rounds.values())
    assert len(set.union(*rounds.values())) == 10


def test_triangles_are_the_trace_of_the_third_power():
    for by_graph in (False, True):
        batch = Triangles(most=99, by_graph=by_graph).sample(rng(), 4, (6, 9))
        assert batch['vectors'].shape == (4, 9, 1)
        cubes = np.linalg.matrix_power(batch['adjacency'].astype(int), 3)
        counts = np.diagonal(cubes, axis1=1, axis2=2) // 2
        if by_graph:
            assert batch['targets'].tolist() == (counts.sum(1, keepdims=True) // 3).tolist()
        else:
            assert batch['targets'].tolist() == counts.tolist()
            assert (batch['loss_mask'] == batch['valid']).all() and not batch['valid'].all()


def test_communities_have_more_edges_within():
    batch = Communities(inside=1.0, between=0.05).sample(rng(), 12, 16)
    triangles = np.trace(np.linalg.matrix_power(batch['adjacency'], 3), axis1=1, axis2=2)
    classes = batch['targets'][:, 0]
    assert triangles[classes == 1].min() > triangles[classes == 0].max()


def test_features_are_standardised_by_the_same_graphs_for_all_data_and_random_ones_are_not():
    """Of both graphs, the first two features are equal and the third is 1/4 and 0."""
    spec = 'rwse(steps=3) | rfp(features=2, steps=0)'
    task = BlindPairs('triangles_hexagon', features=spec)
    third = {}
    for split, length in (('train', 1), ('test', 1), ('test', 3)):
        batch = task.dataset(length=length, batch_size=16, seed=1, split=split)[0]
        by_class = [batch['vectors'][batch['targets'][:, 0] == label] for label in (0, 1)]
        assert not batch['vectors'][..., 1:3].any() and {len(rows) for rows in by_class} != {0}
        third[split, length] = [rows[0, 0, 3] for rows in by_class]
        random = batch['vectors'][..., 4:]
        assert abs(random.mean()) < 0.3 and abs(random.std() - 1) < 0.3
    assert len(set(map(tuple, third.values()))) == 1
    high, low = third['train', 1]
    share = -low / (high - low)  # of graphs of class 0 among those that give the scale
    assert abs(share * high + (1 - share) * low) < 1e-5
    assert abs(share * high**2 + (1 - share) * low**2 - 1) < 1e-5


def test_random_features_are_drawn_anew_in_training_alone():
    task = BlindPairs('triangles_hexagon', features='rfp(features=2, steps=1)')
    draws = [task.sample(rng(), 2, 1)['vectors'][0, :, 1] for _ in range(2)]
    np.testing.assert_array_equal(*draws)  # the same batch
    fresh = task.sample(batch_rng(0, 'train', 1), 2, 1)['vectors'][0, :, 1]
    assert np.abs(fresh - draws[0]).max() > 0.1
    held = task.for_evaluation()
    first, second = (held.sample(batch_rng(0, 'test', n), 2, 1)['vectors'][0, :, 1] for n in (0, 1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('pattern', ['gin()', 'graph_attention()', "graph_attention(edges='bias')"])
def test_layers_of_graphs_do_not_see_the_order_of_nodes_or_padding(pattern):
    model = model_of(pattern, 3, pool='')
    graphdef, state = nnx.split(model)
    # Parameters that start at zero get other values.
    state = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size).reshape(a.shape)), state)
    call = jax.jit(lambda x, tok: nnx.merge(graphdef, state)(x, tok))
    edges = np.triu(np.random.default_rng(0).random((1, 6, 6)) < 0.5, 1)
    edges = (edges | np.swapaxes(edges, 1, 2)).astype(np.float32)
    edges[:, 4:] = edges[:, :, 4:] = 0
    x = np.random.default_rng(1).standard_normal((1, 6, 3)).astype(np.float32)
    valid = np.arange(6)[None] < 4
    nodes = lambda edges, valid: Tokens.of(valid=valid).with_feats(adjacency=edges[:, :, None])
    out = call(x, nodes(edges, valid))
    order = np.array([2, 0, 3, 1, 4, 5])
    moved = call(x[:, order], nodes(edges[:, order][:, :, order], valid))
    np.testing.assert_allclose(moved[:, :4], out[:, order][:, :4], atol=1e-5)
    changed = x.copy()
    changed[:, 4:] = 7.0
    joined = np.where(valid[:, :, None] & valid[:, None], edges, 1)
    np.testing.assert_allclose(call(changed, nodes(joined, valid))[:, :4], out[:, :4], atol=1e-5)
    cut = edges.copy()
    cut[:, 0] = cut[:, :, 0] = 0
    assert edges[0, 0].any() and np.abs(call(x, nodes(cut, valid)) - out)[:, 0].max() > 1e-3


def test_isolated_nodes_and_single_edges_are_read():
    for edges in (np.zeros((1, 1, 1)), np.zeros((1, 3, 3)), 1 - np.eye(2)[None]):
        batch = {'vectors': np.ones((1, edges.shape[1], 1), np.float32), 'adjacency': edges}
        for pattern in ('gin()', 'graph_attention()'):
            out = model_of(pattern, 1)(inputs_of(batch), tokens_of(batch))
            assert out.shape == (1, 1, 2) and np.isfinite(out).all()


def test_gin_tells_numbers_of_equal_neighbours_apart_and_a_mean_does_not():
    star = lambda n: np.pad(np.ones((1, 1, n)), ((0, 0), (0, n), (1, 0)))
    edges = [a + np.swapaxes(a, 1, 2) for a in (star(2), star(3))]
    sizes = dict(model_dim=8, layers=1, rngs=nnx.Rngs(0))
    gin = GIN(**sizes)
    attention = GraphAttention(heads=2, kv_heads=2, head_dim=4, **sizes)
    centre = {}
    for layer in (gin, attention):
        nodes = [Tokens.of(length=a.shape[1]).with_feats(adjacency=a[:, :, None]) for a in edges]
        found = [layer.whole(jnp.ones((1, tok.length, 8)), tok)[0, 0] for tok in nodes]
        centre[layer.card.key] = found
    assert np.abs(np.subtract(*centre['gin'])).max() > 0.01
    np.testing.assert_allclose(*centre['graph_attention'], atol=1e-5)


def test_a_trained_part_of_features_runs_inside_the_model():
    task = BlindPairs('triangles_hexagon', features='rfp(features=3, steps=2, operator="learned")')
    batch = task.sample(rng(), 2, 1)
    model = model_of('gin()', task.channels, layers=1, features=task.features)
    layer = model.input_layer
    assert task.channels == 4 and layer.kernel.shape == (1 + 3 * 3, 8)
    nodes, x0 = batch['vectors'][..., :1], batch['vectors'][..., 1:]
    features = layer.network(x0, nodes, batch['adjacency'] > 0, batch['valid'])
    read = np.concatenate([nodes, features], axis=-1)
    expected = read @ layer.kernel[...] + layer.bias[...]
    np.testing.assert_allclose(layer(batch['vectors'], tokens_of(batch)), expected, atol=1e-5)
    loss = lambda model: (model(inputs_of(batch), tokens_of(batch)) ** 2).sum()
    assert np.abs(nnx.grad(loss)(model).input_layer.network.w_q[...]).max() > 0


@pytest.mark.parametrize('operator', ['adj', 'learned'])
def test_logits_are_averaged_over_the_draws_of_random_features(operator):
    spec = f'lcp(curvature="frc") | rfp(features=2, steps=1, operator="{operator}", draws=3)'
    task = BlindPairs('triangles_hexagon', features=spec)
    batch = task.sample(rng(), 2, (1, 2))
    batch['valid'][0, 10:] = False
    model = model_of('gin()', task.channels, layers=1, features=spec)
    call = jax.jit(lambda x, tok: model(x, tok))
    drawn, tok = batch['vectors'], tokens_of(batch)
    assert drawn.shape == (2, 3, 12, task.channels)
    np.testing.assert_array_equal(drawn[:, 0, :, :6], drawn[:, 1, :, :6])  # 1 and curvatures
    each = [call(drawn[:, number], tok) for number in range(3)]
    assert min(np.abs(each[0] - other).max() for other in each[1:]) > 1e-3
    np.testing.assert_allclose(model(drawn, tok), np.mean(each, axis=0), atol=1e-5)
    held = [task.for_evaluation().sample(rng(), 2, 1)['vectors'] for _ in range(2)]
    np.testing.assert_array_equal(*held)
    assert np.abs(held[0][:, 0] - held[0][:, 1]).max() > 0.1


def write_graphs(folder, count, sizes=None):
    """Paths of odd numbers, and rings; of three nodes if there are no sizes."""
    for number, size in zip(range(count), sizes or [3] * count):
        edges = [f'{i} {i + 1}' for i in range(size - 1)] + [f'0 {size - 1}'] * (number % 2 == 0)
        (folder / f'g{number:02}.txt').write_text('\n'.join(edges))
    names = [f'g{number:02} {number % 2}' for number in range(count)]
    (folder / 'labels.txt').write_text('\n'.join(names) + '\n')


def test_edge_lists_of_a_user(tmp_path):
    write_graphs(tmp_path, 10)
    task = EdgeLists(folder=str(tmp_path))
    batch = task.sample(rng(), 16, (1, 3))
    assert task.output_size == 2
    assert (batch['targets'][:, 0] == (batch['adjacency'].sum((1, 2)) == 4)).all()
    assert task.for_evaluation().sample(rng(), 4, (1, 3))['vectors'].shape == (4, 3, 1)
    # Features of test data have the scale of the training graphs, though all are of one class.
    task = dataclasses.replace(task, features='lcp(curvature="frc")')
    values = {
        split: set(data[0]['vectors'][..., 1].ravel().tolist())
        for split in ('train', 'test')
        for data in [task.dataset(length=(1, 3), batch_size=16, seed=0, split=split)]
    }
    assert len(values['train']) == 2 and len(values['test']) == 1
    assert values['test'] < values['train']
    with pytest.raises(ValueError, match='no graphs of 1 to 2 nodes in the train split'):
        task.sample(rng(), 2, (1, 2))
    with pytest.raises(ValueError, match='no graphs of 1 to 2 nodes in the test split'):
        task.dataset(length=(1, 2), batch_size=2, seed=0, split='test')


def test_nodes_of_edge_lists_have_classes(tmp_path):
    for number in range(3):
        (tmp_path / f'g{number}.txt').write_text('5 7\n7 9\n' if number else '5 7\n')
    spec = {'features': 'lcp(curvature="frc")', 'folder': str(tmp_path), 'by_node': True}
    with pytest.raises(SpecError, match='by_node=True needs a file nodes.txt'):
        EdgeLists(**{**spec, 'folder': str(shutil.copytree(tmp_path, tmp_path / 'without'))})
    nodes = [f'g{number} {node} {node % 4}\n' for number in range(3) for node in (5, 7, 9)]
    (tmp_path / 'nodes.txt').write_text(''.join(nodes).replace('g0 9 1\n', ''))
    task = EdgeLists(**spec)
    assert (task.predicts, task.output_size) == ('here', 4)
    batch = task.dataset(length=(1, 3), batch_size=8, seed=0)[0]
    for targets, valid, mask in zip(batch['targets'], batch['valid'], batch['loss_mask']):
        assert targets[valid].tolist() == [1, 3, 1][: valid.sum()] and (mask == valid).all()
    with pytest.raises(SpecError, match="the label of graph 'g0' must be .* got None"):
        EdgeLists(folder=str(tmp_path))


@pytest.mark.parametrize('by_node', [False, True])
def test_a_class_of_edge_lists_is_an_output_of_the_model(tmp_path, by_node):
    write_graphs(tmp_path, 3)
    nodes = [f'g{graph:02} {node} {65536 * node}\n' for graph in range(3) for node in range(3)]
    (tmp_path / 'nodes.txt').write_text(''.join(nodes))
    (tmp_path / 'labels.txt').write_text('g00 0\ng01 131072\ng02 1\n')
    with pytest.raises(SpecError, match='has the class 131072; .* at most 65536: number the cl'):
        EdgeLists(folder=str(tmp_path), by_node=by_node)


def test_splits_of_edge_lists_share_no_graph(tmp_path):
    write_graphs(tmp_path, 15, sizes=range(3, 18))  # the number of nodes tells a graph
    task, found = EdgeLists(folder=str(tmp_path)), {}
    for split in ('train', 'validation', 'test'):
        batch = task.dataset(length=(3, 17), batch_size=64, seed=0, split=split)[0]
        found[split] = set(batch['valid'].sum(1).tolist())
    assert set.union(*found.values()) == set(range(3, 18))
    assert [len(sizes) for sizes in found.values()] == [11, 2, 2]
    (tmp_path / 'few').mkdir()
    write_graphs(tmp_path / 'few', 2)
    with pytest.raises(ValueError, match='at least three graphs in .*few, one for each split'):
        EdgeLists(folder=str(tmp_path / 'few'))


def test_a_layer_of_graphs_needs_the_edges():
    with pytest.raises(ValueError, match='edges of a graph'):
        model_of('gin()', 1)(jnp.ones((1, 3, 1)))


def test_a_causal_model_refuses_a_layer_that_sees_later_tokens():
    with pytest.raises(SpecError, match="use kind 'encoder'"):
        sizes = dict(vocab_size=3, train_len=4, layers=1, width=8, heads=2)
        Transformer(TransformerConfig(**sizes, encoding='gin()'), rngs=nnx.Rngs(0))

"""Graph-KV: cached segments of a graph against one dense pass with the mask of the graph."""

import functools

import jax
import numpy as np
import pytest

from posenc_jax.lab.decoding import ape_parallel
from posenc_jax.lab.decoding import contexts as shared
from posenc_jax.lab.decoding.cached_contexts import QUERY, Layout, Piece
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.graph_kv import (
    complete_edges,
    encode,
    graph_layout,
    graph_sources,
    join,
)
from posenc_jax.lab.decoding.read_contexts import read
from tests.golden_files import golden_suite
from tests.lab.decoding import passes
from tests.lab.decoding.passes import dense, lengths_of, one_pass, prompt, slots_of
from tests.refusals import check_refused

RANDOM = np.random.default_rng(0)
PREFIX, QUESTION = (RANDOM.integers(0, 13, (2, n)) for n in (2, 4))
SEGMENTS = [RANDOM.integers(0, 13, (2, n)) for n in (3, 5, 4, 2, 3)]
EDGES = [(0, 3), (1, 3), (1, 4), (2, 4)]
model_of = functools.partial(passes.model_of, heads=2, kv_heads=0)


def answers(model, pieces):
    cache = join(model, pieces, capacity=slots_of(pieces) + QUESTION.shape[1])
    return passes.answers(model, cache, QUESTION, steps=1)


def oracle(model, segments=SEGMENTS, edges=EDGES, **options):
    layout = graph_layout(2, lengths_of(segments), edges, **options)
    return dense(model, [PREFIX, *segments], QUESTION, layout)


def first_and_last_ids(case):
    """Of the prefix, every segment and the query."""
    layout = graph_layout(case['prefix'], case['lengths'], case['edges'])
    tok, order = layout.tokens(case['query']), [*range(len(layout.ids)), QUERY]
    pos, segment = np.asarray(tok.pos)[0], np.asarray(tok.segment)[0]
    return [[pos[segment == n].min(), pos[segment == n].max()] for n in order]


test_golden = golden_suite('graph_kv', {'*.ids': first_and_last_ids})


@pytest.mark.full_but_one
@pytest.mark.parametrize('targets_see_prefix', [False, True])
def test_the_cache_is_the_dense_pass(targets_see_prefix):
    model, option = model_of(), dict(targets_see_prefix=targets_see_prefix)
    ours = answers(model, encode(model, PREFIX, SEGMENTS, EDGES, **option))
    np.testing.assert_allclose(ours, oracle(model, **option), atol=2e-5)


def test_targets_read_their_sources_and_do_not_see_the_prefix_unless_asked():
    model = model_of()
    plain, edged, seeing = (
        oracle(model, edges=[]),
        oracle(model),
        oracle(model, targets_see_prefix=True),
    )
    assert min(np.abs(plain - edged).max(), np.abs(seeing - edged).max()) > 1e-3


def test_the_order_of_sources_does_not_matter():
    model, order = model_of(), [2, 0, 1]
    pieces = encode(model, PREFIX, SEGMENTS, EDGES)
    renamed = [(order.index(source), target) for source, target in EDGES]
    permuted = encode(
        model, PREFIX, [*(SEGMENTS[number] for number in order), *SEGMENTS[3:]], renamed
    )
    np.testing.assert_allclose(answers(model, permuted), answers(model, pieces), atol=2e-5)
    for ours, theirs in zip(permuted[4:], pieces[4:]):
        np.testing.assert_allclose(ours.v[1], theirs.v[1], atol=5e-6)


@pytest.mark.full
def test_without_edges_it_is_parallel_encoding():
    model = model_of()
    ours, theirs = encode(model, [], SEGMENTS, []), ape_parallel.encode(model, [], SEGMENTS)
    reader, cache = ape_parallel.join(model, theirs, capacity=21, temperature=1.0, scale=1.0)
    np.testing.assert_allclose(answers(model, ours), read(reader, cache, QUESTION)[0], atol=2e-5)


@pytest.mark.parametrize('sources', [None, 1, 2])
@pytest.mark.full
def test_sequential_chunks_one_layer_deep_are_one_pass_in_a_row(sources):
    """Keys and values of the first layer know nothing of the mask, so that only the final positions
    count.
    """
    model, chunks = model_of(layers=1), SEGMENTS[:3]
    pieces = encode(model, PREFIX, chunks, places='sequential', sources=sources)
    text = np.concatenate([PREFIX, *chunks[3 - (sources or 3) :], *chunks, QUESTION], axis=1)
    assert np.array_equal(
        np.concatenate([piece.ids for piece in pieces]), np.arange(text.shape[1] - 4)
    )
    np.testing.assert_allclose(
        answers(model, pieces), np.asarray(one_pass(model, text))[:, -4:], atol=2e-5
    )


@pytest.mark.full
def test_sequential_targets_are_chunks_behind_all_sources():
    """Deeper: every copy against a pass over itself, or the sources and itself, alone; keys up to
    the turn to their place.
    """
    model, chunks = model_of(), SEGMENTS[:3]
    pieces = encode(model, PREFIX, chunks, places='sequential')
    segment = np.repeat(np.arange(3), [a.shape[1] for a in chunks])
    for number, chunk in enumerate(chunks):
        size = chunk.shape[1]
        layout = graph_layout(0, [3, 5, 4, size], [(0, 3), (1, 3), (2, 3)])
        ids = [np.zeros(0), np.arange(3), 3 + np.arange(5), 8 + np.arange(4), 12 + np.arange(size)]
        tok = Layout(tuple(ids), 0, layout.sees).tokens(0)
        masked = shared.with_contexts(model, layout.sees)
        _, cache = prompt(masked, init_cache(masked, tok), np.concatenate([*chunks, chunk], axis=1))
        cache = jax.tree.map(np.asarray, cache)
        for layer in range(2):
            target, source = pieces[4 + number], pieces[1 + number]
            np.testing.assert_allclose(target.v[layer], cache.layers[layer].v[:, :, 12:], atol=5e-6)
            here = np.flatnonzero(segment == number)
            np.testing.assert_allclose(
                source.v[layer], cache.layers[layer].v[:, :, here], atol=5e-6
            )
            there = Piece((cache.layers[layer].k[:, :, 12:],), (), 12 + np.arange(size))
            turned = shared.moved(model_of(layers=1), there, target.ids).k[0]
            np.testing.assert_allclose(target.k[layer], turned, atol=2e-5)


def test_two_hops_reach_the_query_through_a_target():
    """A change in a source moves the values of its targets, and of no other segment."""
    model = model_of()
    changed = [*SEGMENTS]
    changed[0] = (SEGMENTS[0] + 1) % 13
    before, after = (encode(model, PREFIX, some, EDGES) for some in (SEGMENTS, changed))
    differs = [bool(np.abs(a.v[1] - b.v[1]).max() > 1e-4) for a, b in zip(before, after)]
    assert differs == [False, True, False, False, True, False]


@pytest.mark.parametrize(
    'message, edges',
    {
        r'the edge \(0, 5\) leaves the segments 0 .. 4': [(0, 5)],
        r'the edge \(-1, 2\) leaves': [(-1, 2)],
        r'two integers, got \(0.9, 3.0\)': [(0.9, 3)],
        r'two integers, got \(3,\)': [3],
        r'\(0, 1\) is given 2 times': [(0, 1), (0, 1)],
        'segment 2 has an edge to itself': [(2, 2)],
        'segment 0 has edges in and out': [(0, 1), (1, 2), (2, 0)],
    }.items(),
)
def test_edges_without_a_meaning_are_errors(edges, message):
    with pytest.raises(ValueError, match=message):
        graph_sources(5, edges)
    if message.startswith('segment'):
        assert graph_sources(5, edges, 'sequential')


def test_wrong_input_is_an_error():
    model = model_of()
    calls = {
        'at least one context': lambda: encode(model, PREFIX, [], []),
        r"needs edges for places='shared'": lambda: encode(model, PREFIX, SEGMENTS),
        "places is 'parallel'": lambda: encode(model, PREFIX, SEGMENTS, places='parallel'),
        'where no edges are given': lambda: encode(model, PREFIX, SEGMENTS, EDGES, sources=2),
        '1 .. 3 of 3 chunks, got 4': lambda: complete_edges(3, sources=4),
        'graph_kv needs one rotary .* got alibi': lambda: encode(
            model_of(encoding='alibi()'), PREFIX, SEGMENTS, EDGES
        ),
        'graph_kv needs at least one piece, got none': lambda: join(model, [], capacity=18),
        '2 layers, the model has 1': lambda: join(
            model_of(layers=1), encode(model, PREFIX, SEGMENTS, EDGES), capacity=40
        ),
        '19 tokens .* cache of 18': lambda: join(
            model, encode(model, PREFIX, SEGMENTS, EDGES), capacity=18
        ),
    }
    check_refused(calls)

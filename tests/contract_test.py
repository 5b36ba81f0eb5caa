"""Contract tests: they run on every registered encoding and frequency rule, built from the example
on its Card.

The laws are those of `posenc_jax.testing`, which checks encodings outside of the registry too. This
file has the subjects, and what is true of the registry and of its documentation.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.library.plain_masks import Masks, masks_of
from posenc_jax.features.graphs.graphormer import graphormer_path_edges, graphormer_shortest_paths
from posenc_jax.features.graphs.rrwp import rrwp_probabilities
from posenc_jax.lab.tasks.graphs import random_graph
from posenc_jax.lab.tasks.graphs.named import disjoint
from posenc_jax.language.catalog import KINDS
from posenc_jax.language.spec import build, parse
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import EXCLUSIVE
from posenc_jax.protocol.encoding import TRAITS, Encoding
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Promises, entries, lookup
from posenc_jax.testing import forms, promises, sequences
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import LAWS
from posenc_jax.testing.subject import CONTEXT, WIDTH, Subject, moved

# Examples with an option that is not in the example of the Card. The dict names the promises that
# the option changes.
OPTIONS = {
    'algebraic_tree': ('encoding', 'algebraic_tree(levels=8, decay=0.9)', dict(fused=False)),
    'alibi': ('encoding', 'alibi(variant="asymmetric")', dict(needs_training=True)),
    'alibi_pi': ('encoding', 'alibi_pi(mode="dynamic", train_len=8)', dict()),
    'cape': (
        'encoding',
        'cape(step=0.5, centre=True, scale=2.0) | sinusoidal()',
        dict(relative=True, cached='none'),
    ),
    'cape2d': ('encoding', 'cape2d(shift=0.2)', dict(cached='none')),
    'conflator': ('encoding', 'conflator(unigram_only=True)', dict()),
    'cope': ('encoding', 'cope(npos=64, gates="value")', dict()),
    'dape': ('encoding', 'rope() | dape(width=8)', dict()),
    'deberta': (
        'encoding',
        'deberta(max_distance=12, buckets=8, terms="p2c", norm=True, share_att_key=True)',
        dict(),
    ),
    'dpe': ('encoding', 'dpe(layers=1, order_input_pe=False) | full()', dict(relative=True)),
    'fope': ('encoding', 'fope(train_len=256, freqs=yarn(factor=4.0, train_len=256))', dict()),
    'fox': ('encoding', 'fox(pro=True, prune=-30.0)', dict()),
    'gali': ('encoding', 'gali(encoding=rope(), chunk=1, local=2, noise=1.0, train_len=8)', dict()),
    'grape_a': ('encoding', 'grape_a(gate="both")', dict()),
    'grape_ap': ('encoding', 'grape_ap(size=4, relative=True)', dict(relative=True)),
    'grape_m': ('encoding', 'grape_m(planes=2)', dict(relative=False)),
    'irope': ('encoding', 'irope(size=6, qk_norm=False)', dict()),
    'irpe': ('encoding', 'irpe(mode="bias", method="cross", shared=False)', dict()),
    'kerple': ('encoding', 'kerple(kernel="bias_wht")', dict()),
    'liere': ('encoding', 'liere(block=2, per_head=True, size=(8, 64))', dict(relative=True)),
    'lm_infinite': ('encoding', 'lm_infinite(encoding=alibi(), n_global=2, n_local=5)', dict()),
    'mrope_interleaved': (
        'encoding',
        'mrope_interleaved(positions="spatial_reset")',
        dict(relative=False),
    ),
    'navit_factorized': (
        'encoding',
        'navit_factorized(8, 8, mode="fractional", combine="stack")',
        dict(cached='none'),
    ),
    'nope_temperature': (
        'encoding',
        'nope_temperature(1.2, per_head=True, slope=0.5, train_len=8)',
        dict(needs_training=True),
    ),
    'self_extend': (
        'encoding',
        'self_extend(encoding=rope(), group=None, local=4)',
        dict(relative=True),
    ),
    'pcm': ('encoding', 'pcm(hidden=8, depth=1)', dict()),
    'pope': ('encoding', 'pope(partial=0.5, cache="raw")', dict()),
    'rrwp': ('encoding', 'rrwp(steps=6, hidden=3)', dict()),
    'point_transformer_bias': ('encoding', 'point_transformer_bias(values=False)', dict()),
    'seqpe': ('encoding', 'seqpe(use="attn_mul", max_pos=128, temperature=4.0)', dict(fused=True)),
    'sigma_gpt': (
        'encoding',
        'sigma_gpt(max_len=128, table="sinusoid")',
        dict(needs_training=False),
    ),
    'selective_rope': (
        'encoding',
        'selective_rope(rank=None, gate="channel", gate_rank=4, bias=True)',
        dict(),
    ),
    'stick_breaking': (
        'encoding',
        'stick_breaking(attend_current=True, remainder="drop", prune=-30.0)',
        dict(),
    ),
    'tupe': ('encoding', 'tupe(max_len=64, relative=True, reset=False, buckets=8)', dict()),
    'swin_table': (
        'encoding',
        'swin_table(3, 2, size=(2, 3), windows=True, shift=1)',
        dict(relative=False),
    ),
    'swin_v2_cpb': ('encoding', 'swin_v2_cpb(3, 4, (4, 5), hidden=8, cosine=False)', dict()),
    'window': ('encoding', 'window(size=3, aligned=True)', dict()),
    'xlpe': ('encoding', 'xlpe(level="head")', dict(needs_training=False)),
    'yarn': (
        'frequencies',
        'rope(freqs=yarn(dynamic=True, train_len=8))',
        dict(relative=False, cached='raw'),
    ),
}


def optional(key, kind, example, promises):
    entry = lookup(key, (kind,))
    promises = dataclasses.replace(entry.card.promises, **promises)
    return dataclasses.replace(
        entry, card=dataclasses.replace(entry.card, example=example, promises=promises)
    )


OPTIONAL = [optional(key, *option) for key, option in OPTIONS.items()]


# Encodings that read whole grids have no causal, packed or cached form; the tests of these methods
# hold what is left of the contract.
def reads_grid(entry):
    traits = getattr(entry.build, 'traits', ())
    return isinstance(traits, frozenset) and 'reads_grid' in traits


ENTRIES = [*entries('encoding'), *entries('frequencies'), *OPTIONAL]
ENTRIES = [entry for entry in ENTRIES if not reads_grid(entry)]
ROOT = Path(__file__).parents[1]


class Alternating(Encoding):
    """Gives tokens positions of a text whose language switches every three tokens. The components
    are the position, the offset from the last switch, and the number of switches.
    """

    def place(self, tok, *, key=None):
        parts = jnp.broadcast_arrays(tok.pos, tok.rank % 3, tok.rank // 3)
        return dataclasses.replace(tok, pos=jnp.stack(parts, axis=-1))


class Located(Encoding):
    """Gives tokens positions of four documents of five tokens. The components are the position,
    slot + 1 (for the first token of a document, else 0), and the number of documents.
    """

    def place(self, tok, *, key=None):
        parts = jnp.broadcast_arrays(tok.pos, jnp.where(tok.rank % 5 == 0, tok.rank // 5 + 1, 0), 4)
        return dataclasses.replace(tok, pos=jnp.stack(parts, axis=-1))


class Sentences(Encoding):
    """Gives tokens positions of a text whose sentences have four tokens. The components are the
    index in the sentence and the index of the sentence.
    """

    def place(self, tok, *, key=None):
        return dataclasses.replace(tok, pos=jnp.stack([tok.pos % 4, tok.pos // 4], axis=-1))


class Candidates(Encoding):
    """Gives tokens positions of a context and candidates, with three tokens each. The components
    are the position and the number of the candidate (0 is the context).
    """

    def place(self, tok, *, key=None):
        return dataclasses.replace(
            tok, pos=jnp.stack(jnp.broadcast_arrays(tok.pos, tok.rank // 3), axis=-1)
        )


class Images(Encoding):
    """Gives tokens positions of two images of two rows and five columns, again and again. The
    components are the image, the row and the column.
    """

    def place(self, tok, *, key=None):
        parts = tok.pos // 10 % 2, tok.pos // 5 % 2, tok.pos % 5
        return dataclasses.replace(tok, pos=jnp.stack(parts, axis=-1))


class Filmed(Encoding):
    """Gives tokens positions of a token of text and a video of two frames of 2 x 2 patches, again
    and again. A moved position moves the count of the tokens.
    """

    def place(self, tok, *, key=None):
        cell = tok.rank % 9 - 1
        inside = (cell >= 0).astype(jnp.int32)
        parts = inside * (cell // 4), inside * (cell // 2 % 2), inside * (cell % 2)
        told = jnp.broadcast_arrays(tok.pos, *parts, 2 * inside, 2 * inside)
        return dataclasses.replace(tok, pos=jnp.stack(told, axis=-1))


class Gridded(Encoding):
    """Gives tokens positions of a grid of five columns. A moved position moves its row and its
    column.
    """

    front = 0

    def place(self, tok, *, key=None):
        cell, moved = tok.rank - self.front, jnp.maximum(tok.pos - tok.rank, 0)
        pos = jnp.stack(jnp.broadcast_arrays(cell // 5 + moved, cell % 5 + moved), axis=-1)
        return dataclasses.replace(tok, pos=jnp.where((cell < 0)[..., None], -1, pos))


class Classified(Gridded):
    """The same behind a class token, which is not on the grid."""

    front = 1


class InWindow(Encoding):
    """Gives tokens the cells of a window of four rows and five columns, again and again. A moved
    first position moves the window.
    """

    front = 0

    def place(self, tok, *, key=None):
        cell, moved = tok.rank - self.front, (tok.pos - tok.rank)[:, :1, None]
        pos = jnp.stack([cell % 20 // 5, cell % 5], axis=-1) + moved
        return dataclasses.replace(tok, pos=jnp.where((cell < 0)[..., None], -1, pos))


class ClassifiedWindow(InWindow):
    """The same behind a class token, which is not on the grid."""

    front = 1


class Diagonals(Encoding):
    """Gives tokens positions of a grid of four rows, one whole diagonal after the other. A moved
    position moves its row and its column.
    """

    def place(self, tok, *, key=None):
        row, moved = tok.rank % 4, jnp.maximum(tok.pos - tok.rank, 0)
        parts = row + moved, 3 + tok.rank // 4 - row + moved
        return dataclasses.replace(tok, pos=jnp.stack(jnp.broadcast_arrays(*parts), axis=-1))


class Points(Encoding):
    """Gives tokens coordinates of points in space, on a coil."""

    def place(self, tok, *, key=None):
        turn = 0.3 * tok.pos
        return dataclasses.replace(
            tok, pos=jnp.stack([jnp.cos(turn), jnp.sin(turn), 0.1 * turn], axis=-1)
        )


class Cloud(Encoding):
    """The same coil, which moves along all coordinates as its first position is moved."""

    def place(self, tok, *, key=None):
        turn, moved = 0.3 * tok.rank, (tok.pos - tok.rank)[:, :1, None]
        coil = jnp.stack([jnp.cos(turn), jnp.sin(turn), 0.1 * turn], axis=-1)
        return dataclasses.replace(tok, pos=coil + moved)


class Heap(Encoding):
    """Gives tokens positions of the nodes of a binary tree, level by level, with paths of eight
    components.
    """

    def place(self, tok, *, key=None):
        up = (tok.pos[..., None] + 1) >> jnp.arange(8)
        return dataclasses.replace(tok, pos=jnp.where(up > 1, 1 + (up & 1), 0))


class Reordered(Encoding):
    """Gives tokens positions of a source whose translation swaps every two words. The components
    are the position and the place in the order of the translation.
    """

    def place(self, tok, *, key=None):
        swapped = jnp.broadcast_to(tok.pos + 1 - 2 * (tok.rank % 2), tok.pos.shape)
        return dataclasses.replace(tok, pos=jnp.stack([tok.pos, swapped], axis=-1))


@functools.cache
def graph_features():
    """What encodings read of a graph: 64 nodes in parts, of which the first has 17 nodes."""
    rng = np.random.default_rng(0)
    graph = disjoint(*(random_graph(rng, n, 0.15) for n in (17, 23, 24))).astype(float)
    types = rng.integers(0, 2, graph.shape)
    return {
        'adjacency': graph,
        'graph_rrwp': rrwp_probabilities(graph, 6).astype(np.float32),
        'graph_distance': graphormer_shortest_paths(graph)[0].astype(np.int32),
        'graph_path': graphormer_path_edges(graph, np.triu(types) + np.triu(types, 1).T, 3).astype(
            np.int32
        ),
    }


class Nodes(Encoding):
    """Gives tokens a feature of the nodes of a graph, which have their ranks as numbers."""

    def __init__(self, feature='adjacency'):
        self.feature = feature

    def place(self, tok, *, key=None):
        rows = jnp.asarray(graph_features()[self.feature])
        own = jnp.take(rows, tok.rank, axis=0, mode='clip')[:, :, None]
        return tok.with_feats(**{self.feature: own})


# Encodings that need positions from a task, because a part of them has no effect otherwise.
PLACED = {
    'algebraic_grid': Gridded,
    'algebraic_tree': Heap,
    'axial_rope2d': Gridded,
    'beit_table': ClassifiedWindow,
    'bipe': Sentences,
    'cape2d': Classified,
    'circlerope': Filmed,
    'conflator': Alternating,
    'dinov3_rope': Gridded,
    'graphormer_degree': Nodes,
    'graphormer_edge': functools.partial(Nodes, 'graph_path'),
    'graphormer_spatial': functools.partial(Nodes, 'graph_distance'),
    'hope_video': Filmed,
    'image_shift': Images,
    'irpe': Classified,
    'learned_grid': Classified,
    'liere': Gridded,
    'mhrope': Filmed,
    'mrope': Filmed,
    'mrope_interleaved': Filmed,
    'nar': Diagonals,
    'navit_factorized': Classified,
    'papeft': Located,
    'pcm': Points,
    'point_transformer_bias': Cloud,
    'rope_3d': Cloud,
    'rope_axial': Gridded,
    'rope_mixed': Gridded,
    'rrwp': functools.partial(Nodes, 'graph_rrwp'),
    'sincos2d': Classified,
    'string_cayley': Gridded,
    'string_circulant': Gridded,
    'swin_table': InWindow,
    'swin_v2_cpb': InWindow,
    'tree_pe': Heap,
    'uni_encoder': Candidates,
    'videorope': Filmed,
    'xlpe': Reordered,
}


def make(entry, seed=0, *, causal=True):
    """The example with random numbers added to its parameters."""
    encoding = pj.make(entry.card.example, causal=causal, rngs=nnx.Rngs(seed), **CONTEXT)
    if entry.card.key in PLACED:
        encoding = pj.chain(PLACED[entry.card.key](), encoding)
    return moved(encoding, seed)


# Scale of the projections, 2 unless given here. The phases of tapa are products of queries and
# keys: at a gain of 2 they reach 23 turns, and the last bit of q then changes the result by 1e-4.
# With the changed W_b of conflator, bigram vectors are three times as long as token vectors. The
# layers of dpe with their changed weights enlarge a rounding error before the attention does.
GAIN = {'tapa': 1.0, 'conflator': 1.0, 'dpe': 1.0}


def subject_of(entry):
    card = entry.card
    gain = GAIN.get(card.key, 2.0)
    return Subject(functools.partial(make, entry), card.key, card.promises, gain)


def id_of(entry):
    return entry.key + '_option' * (entry in OPTIONAL)


every_entry = pytest.mark.parametrize('entry', ENTRIES, ids=id_of)


# One encoding for each kind of door or carry. The fast tests run all contract tests on these. On
# the other encodings, the most expensive contract tests run only among the full tests.
REPRESENTATIVES = {
    'rope': 'project',
    'learned_absolute': 'place, embed, and a parameter',
    'reverse_pe': 'place, where no key can be cached',
    't5_rpe': 'logits with a table of parameters',
    'window': 'mask and may_see',
    'cope': 'logits with a carry',
    'carope': 'logits of its own with a carry, and sums along the sequence',
    'path': 'logits of its own with a carry, lookback, and keys that are updated',
    'kernelized_rpe': 'logits of its own, fast_path, and projections of its own',
    'shaw': 'collect',
    'rcmha': 'qkv with rows in front of the tokens',
    'per_head': 'a composite, which forwards every door',
    'dynamic_ntk': 'raw keys in the cache, because their encoding depends on the length',
}


# The laws that the fast tests check on every encoding.
CHEAP = {
    forms.shapes,
    forms.roles,
    promises.needs_training,
    promises.relative,
    promises.sweep_free,
    promises.checkpoints,
    sequences.distances,
    sequences.heads,
}
# Laws that the fast tests check on other subjects than the representatives.
ELSEWHERE = {
    promises.determinism: ('rope', 'reverse_pe', 'randomized_pe'),
    forms.jit: ('rope', 'learned_absolute', 'reverse_pe', 'cope'),
    forms.vmap: ('rope', 'learned_absolute', 'reverse_pe', 'cope'),
    forms.mesh: ('rope', 't5_rpe', 'path', 'per_head'),
}
# Compilation of `dynamic_ntk` is dear. It stands for its kind of cache, which these laws read.
OF_THE_CACHE = {sequences.decoding, sequences.packing}
# `packing` compares the dense form with tiles of a few queries, and `tiles` compares other tiles,
# with gradients, with the doors on the whole matrix. Every subject is a chain with the masks.
ON_REPRESENTATIVES = {
    forms.one_tile: 'the law of packing compares the results of these forms',
    forms.tiles_of_few_queries: 'the law of packing compares the results of these forms',
    promises.chains: 'its doors are forwarded as those of the representatives',
}
# Laws about the pair stage alone, or about how it is evaluated.
OF_PAIRS = {forms.tiles, forms.vmap}
# What is checked of a subject whose pair stage is that of `rope`. Its causality needs no tiles. The
# compiler derives and cuts its token stage, and the pair stage alone cuts itself.
OF_TOKENS = {
    sequences.causality: functools.partial(sequences.causality, how='plain'),
    forms.mesh: functools.partial(forms.mesh, derived=False),
}
# Laws about how a layer is evaluated, which `numbers_alone` may skip.
OF_LAYERS = {forms.mesh, forms.vmap, forms.jit, forms.one_trace}


@functools.cache
def has_plain_pairs(entry):
    """Whether a subject ends with the token stage, so that its pair stage is that of `rope`, which
    stands for all of them.
    """
    masks = masks_of(make(entry))
    return isinstance(masks, Masks) and not masks.others and id_of(entry) not in REPRESENTATIVES


def _form(entry):
    """The classes of the parts, and the shapes of their variables."""
    encoding = make(entry)
    shapes = jax.tree.map(lambda a: a.shape, nnx.to_pure_dict(nnx.state(encoding)))
    return [type(part) for part in parts_of(encoding)], shapes


@functools.cache
def numbers_alone(entry):
    """Whether a subject differs in numbers alone from one that stands for it: a rule for
    frequencies from `rope` and `dynamic_ntk`, and an option of the same class, with variables of
    the same shapes and without a mask of its own, from its method.
    """
    if id_of(entry) in REPRESENTATIVES:
        return False
    if entry not in OPTIONAL:
        return entry.kind == 'frequencies'
    own = [part for part in parts_of(make(entry)) if name_of(part) not in ('causal', 'document')]
    masks = any(part.opens('mask') for part in own)
    return not masks and _form(entry) == _form(lookup(entry.key, (entry.kind,)))


@pytest.fixture(scope='module', params=ENTRIES, ids=id_of)
def layer(request):
    return subject_of(request.param)


def is_expensive(layer, law):
    """Whether a law is checked in the full tier alone; `layer` is the entry."""
    if layer in OPTIONAL or law in (forms.one_tile, forms.tiles_of_few_queries):
        return True
    if law in ELSEWHERE:
        return id_of(layer) not in ELSEWHERE[law]
    if id_of(layer) == 'dynamic_ntk':
        return law not in CHEAP | OF_THE_CACHE
    return law not in CHEAP and id_of(layer) not in REPRESENTATIVES


@pytest.mark.full_where(condition=is_expensive)
@pytest.mark.parametrize('law', LAWS, ids=lambda law: law.__name__)
def test_law(layer, law, request):
    entry = request.node.callspec.params['layer']
    if law in ON_REPRESENTATIVES and id_of(entry) not in REPRESENTATIVES:
        pytest.skip(ON_REPRESENTATIVES[law])
    if law in OF_PAIRS and has_plain_pairs(entry):
        pytest.skip('it has the pair stage of rope')
    if law in OF_LAYERS and numbers_alone(entry):
        pytest.skip('it is evaluated as rope, dynamic_ntk or its method is')
    if law in OF_TOKENS and has_plain_pairs(entry):
        law = OF_TOKENS[law]
    if reason := law(layer):
        pytest.skip(reason)


def test_representatives_are_subjects():
    assert set(REPRESENTATIVES) <= set(map(id_of, ENTRIES))


class CoarseRope(Encoding):
    """RoPE with the error that its phases have the dtype of the vectors."""

    def project(self, q, k, v, tq, tk, x=None):
        turn = lambda a, tok: rotate(
            a,
            (tok.pos.astype(a.dtype)[..., None] * rope_frequencies(WIDTH, 1e4).astype(a.dtype))[
                :, :, None
            ],
        )
        return turn(q, tq), turn(k, tk), v, tq, tk


def test_phases_in_bfloat16_would_be_noticed():
    stated = Promises(relative=True)
    part = lambda cls: Subject(lambda seed: pj.make(cls, causal=True), 'rope', stated)
    forms.bfloat16(part(pj.make('rope()', head_dim=WIDTH)))
    with pytest.raises(BrokenLaw, match='the errors are up to'):
        forms.bfloat16(part(CoarseRope()))


@pytest.mark.full
@pytest.mark.parametrize('key', REPRESENTATIVES)
def test_the_compiler_needs_memory_that_is_linear_too(key):
    """The temporary memory at twice the length."""
    (entry,) = (entry for entry in ENTRIES if id_of(entry) == key)
    layer = subject_of(entry)
    sizes = (
        promises.traced(layer, length).lower().compile().memory_analysis().temp_size_in_bytes
        for length in (512, 1024)
    )
    growth = 1 / np.divide(*sizes)
    assert (growth < 2.2) == layer.promises.blockwise, (
        f'twice the length, {growth:.2f} times the memory'
    )


@functools.cache
def every_part():
    """The parts of all examples, built once for all tests."""
    return [part for entry in ENTRIES for part in parts_of(pj.make(entry.card.example, **CONTEXT))]


@pytest.mark.full
def test_exclusive_doors_name_both_owners(layer):
    is_taken = lambda part: [door for door in EXCLUSIVE if part.opens(door)]
    for part in filter(is_taken, parts_of(layer.encoding)):
        for rival in every_part():
            both = set(is_taken(part)) & set(is_taken(rival))
            if both:
                with pytest.raises(
                    SpecError,
                    match=f'{part.card.key} and {rival.card.key} both need the exclusive door',
                ) as error:
                    pj.chain(part, rival)
                assert any(repr(door) in str(error.value) for door in both)


def test_traits_are_explained(layer):
    assert layer.encoding.traits <= TRAITS.keys()


@every_entry
def test_causal_only_encodings_refuse_an_encoder(entry):
    if entry.card.causal_only:
        message = f'{entry.card.key} is defined for causal attention only'
        with pytest.raises(SpecError, match=message):
            make(entry, causal=False)
    else:
        make(entry, causal=False)


# Spec strings, golden files, test files, docstrings and the catalogue.


@every_entry
def test_the_example_round_trips(entry):
    parsed = parse(entry.card.example)
    assert parse(str(parsed)) == parsed and str(parse(str(parsed))) == str(parsed)
    built = [build(node, {**CONTEXT, 'rngs': nnx.Rngs(0)}) for node in parsed.nodes]
    assert entry.card.key in re.findall(r'[a-z_0-9]+', entry.card.example) and len(built) >= 1


def numbered(content, name=''):
    """The names of the entries of a golden file, at any depth, that are or contain numbers."""
    below = (
        content.items()
        if isinstance(content, dict)
        else [('', v) for v in content]
        if isinstance(content, list)
        else ()
    )
    found = set().union(*(numbered(value, key) for key, value in below))
    return found | {name} if found or isinstance(content, (int, float)) else found


def test_numbers_of_golden_files_are_found():
    assert (
        numbered({'source': 'by hand'})
        == numbered({'source': 'by hand', 'values': {'bias': []}})
        == set()
    )
    assert numbered({'source': 'x', 'values': {'bias': [[0.5]]}}) >= {'values', 'bias'}


METHODS = [entry for kind in KINDS for entry in entries(kind)]  # methods of all kinds
every_method = pytest.mark.parametrize(
    'entry', METHODS, ids=lambda entry: f'{entry.kind}-{entry.key}'
)


@every_method
def test_card_golden_numbers_test_and_catalogue_row_exist(entry):
    card = entry.card
    for field in ('title', 'door', 'equation', 'source', 'authors', 'name', 'example'):
        assert getattr(card, field).strip(), f'{card.key}: the Card has no {field}'
    assert re.fullmatch(r'\d{4}\.\d{4,5}', card.arxiv) or not card.arxiv
    assert 1990 < card.year < 2100
    golden = ROOT / 'tests' / 'golden' / f'{card.key}.json'
    assert golden.is_file(), (
        f'{golden.name} is missing; it must hold reference values and their source'
    )
    content = json.loads(golden.read_text())
    assert content['source'].strip()
    module = entry.build.__module__.rpartition('.')[2]  # of a family
    names = (f'{card.key}_test.py', f'{module}_test.py')
    tests = [file for name in names for file in (ROOT / 'tests').rglob(name)]
    assert tests, f'no test file is called {" or ".join(names)}'
    test = tests[0].read_text(encoding='utf-8')
    named = [
        name
        for name in numbered(content) - {''}
        if re.search(rf'[\'".]{re.escape(name)}[\'".]', test)  # also in the path of a row
    ]
    assert re.search(r'golden(_suite)?\(', test) and f"'{card.key}'" in test and named, (
        f'{golden.name} holds no numbers that {tests[0].name} reads by name'
    )
    rows = [
        row
        for row in (ROOT / 'docs' / 'catalog.md').read_text(encoding='utf-8').splitlines()
        if f'| `{card.key}` |' in row
    ]
    shown = card.example.replace('|', '\\|')
    assert any(shown in row for row in rows), (
        'the catalogue is stale: python -m posenc_jax.lab.catalogue'
    )


@every_method
def test_the_docstring_shows_and_cites(entry):
    text = ' '.join(entry.build.__doc__.split())
    for needed in ('Differs from ', 'Reference: '):
        assert needed in text, f'{entry.key}: the docstring has no {needed!r}'
    assert not entry.card.arxiv or entry.card.arxiv in text, (
        f'{entry.key}: the docstring does not cite {entry.card.arxiv}'
    )

"""Contract tests: they run on every registered encoding and frequency rule, built from the example
on its Card.

Each test runs one attention layer: `place`, `embed`, `qkv` and the projections, `project`,
`attend`, `merge`. `plain` is the reference for `attend`: it calls the doors of the pair stage once
on the whole matrix of logits, and JAX differentiates it. It uses no code of `attend`. The class
`Layer` compiles each function once for an encoding, and all tests of this encoding use it. The
sizes are the smallest at which the examples have an effect.
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
from posenc_jax.catalog import KINDS
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.conflicts import EXCLUSIVE
from posenc_jax.core.encoding import TRAITS, Constant, Encoding
from posenc_jax.core.masks import Causal, Document
from posenc_jax.core.registry import SpecError, entries, lookup
from posenc_jax.core.spec import build, parse
from posenc_jax.model import cache as cache_module
from posenc_jax.model.sharding import make_mesh, sharded_attend
from posenc_jax.rotation.rope import rope_frequencies, rotate
from tests.jaxprs import largest_array

# Examples with an option that is not in the example of the Card. The dict names the promises that
# the option changes.
OPTIONS = {
    'alibi': ('encoding', 'alibi(variant="asymmetric")', dict(needs_training=True)),
    'alibi_pi': ('encoding', 'alibi_pi(mode="dynamic", train_len=8)', dict()),
    'dpe': ('encoding', 'dpe(layers=1, order_input_pe=False) | full()', dict(relative=True)),
    'gali': ('encoding', 'gali(encoding=rope(), chunk=1, local=2, noise=1.0, train_len=8)', dict()),
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
    'seqpe': ('encoding', 'seqpe(use="attn_mul", max_pos=128, temperature=4.0)', dict(fused=True)),
    'sigma_gpt': (
        'encoding',
        'sigma_gpt(max_len=128, table="sinusoid")',
        dict(needs_training=False),
    ),
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
ROWS, LENGTH, HEADS, KV_HEADS, WIDTH, MODEL = 2, 20, 4, 2, 8, 32
DOCUMENT = LENGTH // 2
PACKED = np.arange(LENGTH)[None] // DOCUMENT + np.zeros((ROWS, 1), int)
CONTEXT = dict(heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH, model_dim=MODEL, train_len=16)
BLOCKS = [
    (8, 3),
    (3, 32),
]  # sizes that do not divide the length; many blocks of queries and one of keys
SAME, DIFFERENT = (
    2e-5,
    1e-3,
)  # for numbers of order one: the rounding error of float32 sums, and a difference of results


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


class Reordered(Encoding):
    """Gives tokens positions of a source whose translation swaps every two words. The components
    are the position and the place in the order of the translation.
    """

    def place(self, tok, *, key=None):
        swapped = jnp.broadcast_to(tok.pos + 1 - 2 * (tok.rank % 2), tok.pos.shape)
        return dataclasses.replace(tok, pos=jnp.stack([tok.pos, swapped], axis=-1))


# Encodings that need positions from a task, because a part of them has no effect otherwise.
PLACED = {
    'axial_rope2d': Gridded,
    'bipe': Sentences,
    'conflator': Alternating,
    'image_shift': Images,
    'irpe': Classified,
    'learned_grid': Classified,
    'nar': Diagonals,
    'papeft': Located,
    'sincos2d': Classified,
    'pcm': Points,
    'uni_encoder': Candidates,
    'xlpe': Reordered,
}


def make(entry, *, seed=0, causal=True):
    """The example with random numbers added to its parameters, because some start at zero."""
    encoding = pj.make(entry.card.example, causal=causal, rngs=nnx.Rngs(seed), **CONTEXT)
    if entry.card.key in PLACED:
        encoding = pj.chain(PLACED[entry.card.key](), encoding)
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves) + 1)
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, moved), rest)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Scale of the projections, 2 unless given here. The phases of tapa are products of queries and
# keys: at a gain of 2 they reach 23 turns, and the last bit of q then changes the result by 1e-4.
# With the changed W_b of conflator, bigram vectors are three times as long as token vectors. The
# layers of dpe with their changed weights enlarge a rounding error before the attention does.
GAIN = {'tapa': 1.0, 'conflator': 1.0, 'dpe': 1.0}

READ_NO_QUERIES = {'positional_attention'}


def projections(gain=2.0):
    kernel = lambda seed, heads: draw(seed, MODEL, heads, WIDTH) * gain * MODEL**-0.5
    return {'q': kernel(1, HEADS), 'k': kernel(2, KV_HEADS), 'v': kernel(3, KV_HEADS)}


def tokens(*, pos=None, segment=None, valid=None, length=LENGTH, rows=ROWS):
    """Tokens in which no optional array is None, so that all inputs of one length use the same
    compiled function.
    """
    if pos is None and segment is None and valid is None:
        return plain_tokens(length, rows)
    segment = np.zeros((rows, length), np.int32) if segment is None else segment
    valid = np.ones((rows, length), bool) if valid is None else valid
    tok = pj.Tokens.of(segment=segment, valid=valid)
    pos = jnp.broadcast_to(tok.pos, (rows, length)) if pos is None else pos
    return dataclasses.replace(tok, pos=pos, index=jnp.broadcast_to(tok.index, (rows, length)))


@functools.cache
def plain_tokens(length, rows):
    with jax.ensure_compile_time_eval():  # also where a function is being traced
        return tokens(valid=np.ones((rows, length), bool), length=length, rows=rows)


def earlier_rows(x, tok, lookback):
    """The layer input as `project` gets it: `lookback` rows of zeros in front, and zeros at padded
    tokens.
    """
    x = x if tok.valid is None else jnp.where(tok.valid[..., None], x, 0)
    return jnp.pad(x, ((0, 0), (lookback, 0), (0, 0)))


def split(encoding, weights, x, rows, tok):
    """q, k, v of all inputs of attention, joined along the heads. Unless the encoding opens `qkv`,
    x is the only input.
    """
    linear = lambda x: tuple(
        jnp.einsum('bld,dnh->blnh', x, weights[name].astype(x.dtype)) for name in 'qkv'
    )
    return encoding.qkv(rows, linear, tok) if encoding.opens('qkv') else linear(x)


def project(encoding, weights, x, tok, *, key=None):
    """Runs all doors before the pair stage; returns q, k, v and the tokens of queries and keys."""
    tok = encoding.place(tok, key=key)
    x = encoding.embed(x, tok)
    rows = earlier_rows(x, tok, encoding.lookback)
    return encoding.project(*split(encoding, weights, x, rows, tok), tok, tok, rows)


APPLIED = functools.partial(pj.attend, applied=pj.TOKEN_STAGE)


def attend(encoding, *arguments, how=APPLIED, **options):
    """Runs the pair stage by the function `how`, and `merge` after it."""
    return encoding.merge(how(encoding, *arguments, **options))


def plain(encoding, q, k, v, tq, tk):
    """Attention over the whole matrix of logits, computed by the doors without `pj.attend`."""
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    seen = tk.valid[:, None, None, :]
    allowed = encoding.mask(tq, tk)
    seen = seen if allowed is None else seen & allowed
    s, carry = encoding.match(q, k, tq, tk, seen, encoding.init_carry(q, tq))
    s, _ = encoding.score(s, tq, tk, seen, carry)
    seen = seen & (s > -jnp.inf)  # a key may also be refused by its logit
    w = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)
    return encoding.merge(jnp.swapaxes(encoding.collect(w, v, tq, tk), 1, 2))


PADDED = np.ones((ROWS, LENGTH), bool)
PADDED[0, :3] = PADDED[1, -4:] = False
COTANGENT = np.asarray(draw(9, ROWS, LENGTH, HEADS, WIDTH))


class Layer:
    """An example, with random weights and input, and its compiled functions, each traced once."""

    def __init__(self, entry):
        self.entry, self.card, self.promises = entry, entry.card, entry.card.promises
        self.encoding = make(entry)
        self.graphdef, self.state = nnx.split(self.encoding)
        self.weights, self.x = (
            projections(GAIN.get(self.card.key, 2.0)),
            draw(4, ROWS, LENGTH, MODEL),
        )
        self.traces = {}

    def _counted(self, name, function):
        def counted(state, *arguments):
            self.traces[name] = self.traces.get(name, 0) + 1
            return function(nnx.merge(self.graphdef, state), *arguments)

        return jax.jit(counted)

    @functools.cached_property
    def _project(self):
        return self._counted('project', project)

    @functools.cached_property
    def _dense(self):
        return self._counted('dense', functools.partial(attend, implementation='dense'))

    @functools.cached_property
    def _gradients(self):
        return {
            how: self._counted(('gradients', how), functools.partial(gradients, attention_of(how)))
            for how in ('plain', 'dense', *BLOCKS)
        }

    def project(self, x=None, tok=None, weights=None, state=None):
        state = self.state if state is None else state
        weights = self.weights if weights is None else weights
        return self._project(
            state, weights, self.x if x is None else x, tokens() if tok is None else tok
        )

    def attend(self, *arguments, state=None):
        return np.asarray(self._dense(self.state if state is None else state, *arguments))

    def __call__(self, x=None, tok=None, weights=None, state=None):
        return self.attend(*self.project(x, tok, weights, state), state=state)

    def gradients(self, how, tok=None, cotangent=COTANGENT):
        """The output, and the gradients of parameters, projections and input. By default the batch
        has one row padded on the left and one padded on the right.
        """
        tok = tokens(valid=PADDED) if tok is None else tok
        return self._gradients[how](self.state, self.weights, self.x, tok, cotangent)


def attention_of(how):
    return (
        plain
        if how == 'plain'
        else functools.partial(
            attend, **({'implementation': how} if how == 'dense' else {'block': how})
        )
    )


def gradients(attention, encoding, weights, x, tok, cotangent):
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)

    def output(params, weights, x):
        return attention(
            encoding := nnx.merge(graphdef, params, rest), *project(encoding, weights, x, tok)
        )

    out, pull = jax.vjp(output, params, weights, x)
    # The output of a padded query has no meaning, because whole blocks of padded queries are
    # skipped. It must be finite, but it is not compared.
    real = tok.valid[..., None, None]
    return (jnp.where(real, out, 0), pull(jnp.where(real, cotangent, 0)), jnp.isfinite(out).all())


def id_of(entry):
    return entry.key + '_option' * (entry in OPTIONAL)


@pytest.fixture(scope='module', params=ENTRIES, ids=id_of)
def layer(request):
    return Layer(request.param)


# One encoding for each kind of door or carry. The fast tests run all contract tests on these. On
# the other encodings, the most expensive contract tests run only among the full tests.
REPRESENTATIVES = {
    'rope': 'project',
    'learned_absolute': 'place, embed, and a parameter',
    'reverse_pe': 'place, where no key can be cached',
    't5_rpe': 'score with a table of parameters',
    'window': 'mask and may_see',
    'cope': 'score with a carry',
    'carope': 'match with a carry, and sums along the sequence',
    'path': 'match with a carry, lookback, and keys that are updated',
    'kernelized_rpe': 'match, fast_path, and projections of its own',
    'shaw': 'collect',
    'rcmha': 'several inputs: qkv and merge',
    'per_head': 'a composite, which forwards every door',
    'dynamic_ntk': 'raw keys in the cache, because their encoding depends on the length',
}


expensive = pytest.mark.full_where(condition=lambda layer, **_: id_of(layer) not in REPRESENTATIVES)


def test_representatives_are_subjects():
    assert set(REPRESENTATIVES) <= set(map(id_of, ENTRIES))


def close(a, b, tolerance=SAME):
    np.testing.assert_allclose(
        np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance
    )


def gap(a, b):
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))


def close_gradients(a, b):
    """Asserts that gradients are finite and equal. The absolute tolerance grows with the largest
    entry, because some exact gradients are zero.
    """
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-3, atol=5 * SAME * max(1.0, float(np.abs(theirs).max()))
        )


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# Shapes, types, tiles, gradients.


def test_shapes_and_types(layer):
    """With input in bfloat16, the token stage returns bfloat16; logits, carries and sums of values
    are float32.
    """
    shapes = jax.eval_shape(
        functools.partial(project, layer.encoding, layer.weights),
        layer.x.astype(jnp.bfloat16),
        tokens(),
    )
    q, k, v, tq, tk = shapes
    inputs = q.shape[2] // HEADS
    assert layer.encoding.opens('qkv') == layer.encoding.opens('merge')
    assert inputs == 1 or layer.encoding.opens('qkv')
    for a, heads in ((q, HEADS), (k, KV_HEADS), (v, KV_HEADS)):
        assert (a.shape, a.dtype) == ((ROWS, LENGTH, inputs * heads, WIDTH), jnp.bfloat16)
    merged = jax.eval_shape(layer.encoding.merge, q)
    assert (merged.shape, merged.dtype) == ((ROWS, LENGTH, HEADS, WIDTH), jnp.bfloat16)
    for tok in (tq, tk):
        assert (tok.index.shape, tok.length) == ((ROWS, LENGTH), LENGTH)
        for leaf in jax.tree.leaves(tok.feats):
            assert leaf.ndim >= 3 and leaf.shape[0] in (1, ROWS) and leaf.shape[1] == LENGTH, leaf
            assert leaf.shape[2] in (1, HEADS, KV_HEADS), f'feature {leaf.shape} needs a head axis'

    def pair_stage(q, k, v, tq, tk):
        q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
        seen, carry = jnp.ones((ROWS, 1, LENGTH, LENGTH), bool), layer.encoding.init_carry(q, tq)
        s, matched = layer.encoding.match(q, k, tq, tk, seen, carry)
        scored = layer.encoding.score(s, tq, tk, seen, matched)
        return (
            carry,
            (s, matched),
            scored,
            layer.encoding.collect(s, v, tq, tk),
            layer.encoding.mask(tq, tk),
        )

    carry, matched, scored, collected, mask = jax.eval_shape(pair_stage, *shapes)
    for s, after in (matched, scored):
        assert (s.shape, s.dtype) == ((ROWS, inputs * HEADS, LENGTH, LENGTH), jnp.float32)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), carry
        )
    assert all(
        a.dtype == jnp.float32 and a.shape[:3] == (ROWS, inputs * HEADS, LENGTH)
        for a in jax.tree.leaves(carry)
    )
    assert (collected.shape, collected.dtype) == (
        (ROWS, inputs * HEADS, LENGTH, WIDTH),
        jnp.float32,
    )
    assert mask is None or (
        mask.dtype == bool and np.broadcast_shapes(mask.shape, matched[0].shape) == matched[0].shape
    )


@expensive
def test_bfloat16_is_close_to_float32(layer):
    """Both runs have the same rounded queries, keys and values, so they differ only by the
    computations of the encoding.
    """
    tok = tokens()
    if (
        layer.promises.relative
    ):  # large positions, where the error of a position in bfloat16 is larger than 1
        tok = dataclasses.replace(tok, pos=13 * tok.pos + 1000)
    low = layer.x.astype(jnp.bfloat16)

    def run(dtype):
        placed, part = layer.encoding.place(tok), layer.encoding
        embedded = lambda x: earlier_rows(part.embed(x, placed), placed, part.lookback)
        exact, rows = embedded(low.astype(jnp.float32)), embedded(low.astype(dtype))
        heads = split(part, layer.weights, low.astype(jnp.float32), exact, placed)
        q, k, v = (a.astype(jnp.bfloat16).astype(dtype) for a in heads)
        return layer.attend(*layer.encoding.project(q, k, v, placed, placed, rows))

    out = run(jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    error = np.abs(out.astype(np.float32) - run(jnp.float32))
    assert np.median(error) < 0.0035 and error.max() < 0.12, (np.median(error), error.max())


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
    layer = Layer(next(entry for entry in ENTRIES if entry.key == 'rope'))
    test_bfloat16_is_close_to_float32(layer)
    layer.encoding = CoarseRope()
    with pytest.raises(AssertionError):
        test_bfloat16_is_close_to_float32(layer)


@pytest.mark.full_where(
    condition=lambda layer, how: how != BLOCKS[0] or id_of(layer) not in REPRESENTATIVES
)
@pytest.mark.parametrize('how', ['dense', *BLOCKS], ids=str)
def test_tiles_and_their_gradients_equal_the_whole(layer, how):
    if how == BLOCKS[1] and id_of(layer.entry) not in REPRESENTATIVES:
        pytest.skip('the test of packing compares the results of these tiles with the whole')
    (out, grads, finite), (expected, expectations, _) = (
        layer.gradients(how),
        layer.gradients('plain'),
    )
    assert finite
    close(out, expected)
    close_gradients(grads, expectations)


@expensive
def test_every_parameter_gets_a_gradient(layer):
    if layer.encoding.opens('begin_stream'):
        pytest.skip('its parameters act on the stream of a model, which one layer does not have')
    parameters, *_ = layer.gradients('dense')[1]
    for path, gradient in jax.tree_util.tree_leaves_with_path(parameters):
        assert np.abs(gradient).max() > 1e-6, (
            f'{jax.tree_util.keystr(path)} is trained but has no gradient'
        )


@expensive
def test_padded_rows_are_finite_and_do_not_leak(layer):
    tok = tokens(valid=PADDED)
    out = layer(tok=tok)
    assert np.isfinite(out).all()
    other = jnp.where(PADDED[..., None], layer.x, 1e3)
    close(layer(other, tok)[PADDED], out[PADDED], 1e-6)


# jit, vmap, one trace, devices.


@expensive
def test_jit_equals_eager(layer):
    close(
        attend(
            layer.encoding,
            *project(layer.encoding, layer.weights, layer.x, tokens()),
            implementation='dense',
        ),
        layer(),
    )


@expensive
def test_vmap_equals_a_loop(layer):
    xs = jnp.stack([layer.x, 0.5 * layer.x[::-1]])
    valid = jnp.stack([jnp.asarray(PADDED), jnp.asarray(PADDED[::-1])])

    def one(x, valid):
        tok = dataclasses.replace(tokens(), valid=valid)
        return attend(layer.encoding, *project(layer.encoding, layer.weights, x, tok), block=(8, 8))

    together = jax.jit(jax.vmap(one))(xs, valid)
    for i in range(2):
        close(together[i], layer(xs[i], dataclasses.replace(tokens(), valid=valid[i])))


@expensive
def test_one_trace_serves_many_values(layer):
    before = {name: layer.traces.get(name, 0) for name in ('project', 'dense')}
    for step in range(3):
        layer(
            layer.x * (step + 1),
            tokens(
                pos=tokens().pos + step,
                segment=np.arange(LENGTH)[None] // (7 + step) + np.zeros((2, 1), int),
            ),
        )
    assert all(layer.traces[name] - count <= 1 for name, count in before.items()), (
        before,
        layer.traces,
    )


@expensive
@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_sharded_equals_unsharded(layer):
    mesh, how = (
        make_mesh(data=2, tensor=2, sequence=2),
        functools.partial(attend, how=sharded_attend, block=(8, 8)),
    )
    with jax.set_mesh(mesh):
        sharded = jax.jit(functools.partial(gradients, how))(
            layer.encoding, layer.weights, layer.x, tokens(valid=PADDED), COTANGENT
        )
    out, grads, finite = sharded
    expected, expectations, _ = layer.gradients('dense')
    assert finite and len(out.sharding.device_set) == 8
    close(out, expected)
    close_gradients(grads, expectations)


def test_what_is_per_head_says_so(layer):
    """Every variable declares one role for each axis, because tensor parallelism splits variables
    by these roles.
    """
    for variable in jax.tree.leaves(
        nnx.state(layer.encoding), is_leaf=lambda a: isinstance(a, nnx.Variable)
    ):
        assert isinstance(variable, (nnx.Param, Constant)), type(variable)
        axes = variable.get_metadata().get('axes')
        assert axes is not None and len(axes) == variable.get_value().ndim, (
            f'{variable} declares axes={axes}'
        )
        for size, role in zip(variable.get_value().shape, axes):
            assert (
                role not in ('heads', 'kv_heads')
                or size == {'heads': HEADS, 'kv_heads': KV_HEADS}[role]
            )


# Padding, packing, causality.


@expensive
def test_packing_and_padding_change_nothing(layer):
    """Two documents of ten tokens have the same outputs alone, packed in one row, and with padding
    on the left or on the right.
    """
    documents = layer.x[:, :DOCUMENT]
    alone = pj.Tokens.of(length=DOCUMENT)
    # What is compared is computed as a whole. Alone, the documents are computed in tiles of a few
    # queries and all keys, which `test_tiles_and_their_gradients_equal_the_whole` compares for the
    # representatives; these choose themselves how they compute it.
    block = None if id_of(layer.entry) in REPRESENTATIVES else BLOCKS[1]
    expected = jax.jit(
        lambda x: attend(
            layer.encoding, *project(layer.encoding, layer.weights, x, alone), block=block
        )
    )(documents)
    packed = jnp.tile(documents.reshape(1, LENGTH, MODEL), (ROWS, 1, 1))
    out = layer(packed, tokens(segment=PACKED))
    close(out[0].reshape(expected.shape), expected)
    filler = jnp.full_like(documents, 3.0)
    for order in (1, -1):
        valid = np.repeat([[False, True]], DOCUMENT, axis=1)[:, ::order]
        valid = np.broadcast_to(valid, (ROWS, LENGTH))
        padded = jnp.concatenate([filler, documents][::order], axis=1)
        close(layer(padded, tokens(valid=valid))[valid].reshape(expected.shape), expected)


@expensive
def test_causality(layer):
    """With the causal mask, the gradients of earlier outputs by later inputs are exactly zero, and
    a change of later inputs leaves earlier outputs exactly the same. Masks that show later keys are
    refused beside the causal mask.
    """
    sees_later = 'sees_later' in layer.encoding.traits
    cut = 1 if sees_later else 7
    early = np.where(np.arange(LENGTH)[:, None, None] < cut, COTANGENT, 0)
    gradient = layer.gradients(BLOCKS[0], tokens(), early)[1][2]
    if sees_later:
        assert np.abs(gradient[:, cut:]).max() > DIFFERENT
        with pytest.raises(
            SpecError, match=r'causal hides later keys and \w+ shows them: leave one out'
        ):
            pj.chain(layer.encoding, Causal())
        return
    assert not np.asarray(gradient[:, cut:]).any()
    assert np.abs(gradient[:, :cut]).max() > DIFFERENT
    later = layer.x.at[:, cut:].set(-5.0)
    np.testing.assert_array_equal(layer(later)[:, :cut], layer()[:, :cut])


def test_distances_are_those_of_positions(layer):
    """Gaps in `index` change no output, because encodings measure distances by `pos`. Only
    encodings that are just a mask may measure distances by `index`.
    """
    tok = tokens()
    out, gaps = layer(tok=tok), layer(tok=dataclasses.replace(tok, index=3 * tok.index + 1))
    if layer.card.door != 'mask':
        close(gaps, out, 1e-6)


# The cache.


def decode(encoding, weights, x, tok, prompt):
    """Decodes with a cache: a prompt at once, then one token at a time.

    Returns:
      The outputs of all tokens, the cache after the prompt, the cache at the end, and the keys as
      projected.
    """
    tok = encoding.place(tok)
    x = encoding.embed(x, tok)
    rows, k = earlier_rows(x, tok, encoding.lookback), jnp.einsum('bld,dnh->blnh', x, weights['k'])
    own, early = tok.slice(0, prompt), rows[:, : prompt + encoding.lookback]
    arguments, filled = cache_module.start(
        encoding, *split(encoding, weights, x[:, :prompt], early, own), own, early, LENGTH
    )
    first = attend(encoding, *arguments)

    def step(cache, cursor):
        at = lambda a, shift=0: jax.lax.dynamic_slice_in_dim(a, cursor + shift, 1, axis=1)
        row = at(rows, encoding.lookback)
        q, k, v = split(
            encoding,
            weights,
            at(x),
            jnp.concatenate([cache.rows, row], axis=1),
            tok.slice(cursor, 1),
        )
        arguments, cache = cache_module.step(encoding, cache, q, k, v, tok, row, cursor)
        return cache, attend(encoding, *arguments, heads_first=True)[:, 0]

    final, rest = jax.lax.scan(step, filled, jnp.arange(prompt, LENGTH))
    return jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], axis=1), filled, final, k


@expensive
def test_decoding_equals_the_pass_over_the_prefix(layer):
    """Decodes token by token with the cache of the library, where one prompt is padded on the left,
    and then checks the cached keys.
    """
    prompt = 6
    valid = np.ones((ROWS, LENGTH), bool)
    valid[1, :2] = False
    tok = dataclasses.replace(pj.Tokens.of(valid=valid), index=jnp.arange(LENGTH)[None])
    if layer.promises.cached == 'none':
        with pytest.raises(
            ValueError,
            match=f'{layer.card.key} gives every token another position when one is added',
        ):
            decode(layer.encoding, layer.weights, layer.x, tok, prompt)
        longer = layer(tok=tokens(valid=valid))[:, :prompt]
        shorter = layer(tok=tokens(valid=valid & (np.arange(LENGTH) < prompt)))[:, :prompt]
        assert gap(longer, shorter) > DIFFERENT, (
            'a Card promises cached="none" exactly if a later token changes earlier outputs'
        )
        return
    out, filled, final, raw_keys = layer._counted(
        'decode', lambda e, w, x, tok: decode(e, w, x, tok, prompt)
    )(layer.state, layer.weights, layer.x, tok)
    prefix = lambda end: tokens(valid=valid & (np.arange(LENGTH) < end))
    close(
        out[:, :prompt][valid[:, :prompt]], layer(tok=prefix(prompt))[:, :prompt][valid[:, :prompt]]
    )
    for t in range(prompt, LENGTH):
        close(out[:, t], layer(tok=prefix(t + 1))[:, t])

    before, after = (np.asarray(cache.k)[:, :, :prompt] for cache in (filled, final))
    raw = np.swapaxes(np.asarray(raw_keys)[:, :prompt], 1, 2)
    whole = np.where(
        valid[:, :prompt, None, None], layer.project(tok=prefix(LENGTH))[1][:, :prompt], 0
    )
    short = np.where(
        valid[:, :prompt, None, None], layer.project(tok=prefix(prompt))[1][:, :prompt], 0
    )
    kind = layer.promises.cached
    assert layer.encoding.cached == kind
    assert (gap(whole, short) > DIFFERENT) == (kind == 'raw'), (
        'a Card promises cached="raw" exactly if the encoding of a key depends on the length'
    )
    assert (gap(before, after) > DIFFERENT) == (kind == 'evolving'), (
        'a Card promises cached="evolving" exactly if later tokens change the cached keys'
    )
    if kind == 'raw':
        np.testing.assert_array_equal(after, raw)


# Promises of the Cards: an encoding has a property exactly if its Card promises it.


def holds(promise, distance):
    """Asserts that the distance is zero up to rounding exactly if the property is promised. A
    distance between the two thresholds decides nothing, and the test fails.
    """
    assert distance < SAME * 5 or distance > DIFFERENT, f'undecided: {distance}'
    assert (distance < SAME * 5) == promise, (
        f'promised {promise}, but the outputs differ by {distance}'
    )


def test_promise_relative(layer):
    moved = tokens()
    moved = dataclasses.replace(moved, pos=moved.pos + 3)
    holds(layer.promises.relative, gap(layer(tok=moved), layer()))


def test_promise_sweep_free(layer):
    q, k, v, tq, tk = layer.project()
    order = np.random.default_rng(0).permutation(LENGTH)
    shuffled = jax.tree.map(lambda a: a[:, order] if a.ndim > 1 else a, (k, v, tk))
    holds(
        layer.promises.sweep_free,
        gap(
            layer.attend(q, shuffled[0], shuffled[1], tq, shuffled[2]),
            layer.attend(q, k, v, tq, tk),
        ),
    )


def test_a_head_reads_no_other_head(layer):
    weights = dict(layer.weights, q=layer.weights['q'].at[:, 0].multiply(-1.5))
    changed, same = layer(weights=weights), layer()
    own = gap(changed[:, :, 0], same[:, :, 0])
    assert own == 0 if layer.card.key in READ_NO_QUERIES else own > DIFFERENT
    close(changed[:, :, 1:], same[:, :, 1:])


def traced(layer, length):
    """One forward and backward pass in tiles of 64, traced."""
    tok = pj.Tokens.of(positions=np.arange(length)[None] % 64)  # within every example's table
    loss = lambda encoding, weights, x: attend(
        encoding, *project(encoding, weights, x, tok), block=64
    ).sum()
    run = layer._counted(
        f'memory {length}', lambda e, w, x: jax.grad(loss, (0, 1, 2), allow_int=True)(e, w, x)
    )
    shape = jax.ShapeDtypeStruct((1, length, MODEL), jnp.float32)
    return run.trace(layer.state, layer.weights, shape)


@expensive
def test_promise_blockwise(layer):
    """Evaluation in tiles makes no array with an entry for each pair of tokens. An earlier test
    compares the results of tiles and of the whole matrix.
    """
    length = 4096
    largest = largest_array(traced(layer, length))
    assert (largest < length**2) == layer.promises.blockwise, f'{largest / length} a token'


@pytest.mark.full
@pytest.mark.parametrize('key', REPRESENTATIVES)
def test_the_compiler_needs_memory_that_is_linear_too(key):
    """The temporary memory at twice the length."""
    (entry,) = (entry for entry in ENTRIES if id_of(entry) == key)
    layer = Layer(entry)
    sizes = (
        traced(layer, length).lower().compile().memory_analysis().temp_size_in_bytes
        for length in (512, 1024)
    )
    growth = 1 / np.divide(*sizes)
    assert (growth < 2.2) == layer.promises.blockwise, (
        f'twice the length, {growth:.2f} times the memory'
    )


def test_promise_needs_training(layer):
    trained = jax.tree.leaves(nnx.state(layer.encoding, nnx.Param))
    assert bool(trained) == layer.promises.needs_training


@expensive
def test_promise_fused(layer):
    """JAX's own attention with the causal mask gives the result of the pair stage exactly if the
    Card promises it. The positions are those of packed documents, but no document mask is used.
    """
    q, k, v, tq, tk = layer.project(tok=tokens(segment=PACKED))
    keys = list(map(name_of, parts_of(layer.encoding)))
    library = jax.nn.dot_product_attention(q, k, v, is_causal='full' not in keys)
    keep = pj.chain(
        *(
            part
            for part in parts_of(layer.encoding)
            if name_of(part) == layer.card.key or name_of(part) != 'document'
        )
    )
    holds(
        layer.promises.fused,
        gap(layer.encoding.merge(library), attend(keep, q, k, v, tq, tk, implementation='dense')),
    )


# Laws of composition, determinism, checkpoints.


@expensive
def test_chains_associate_and_nope_is_neutral(layer):
    first, second = pj.make('nope()'), Document()
    left, right = (
        pj.chain(pj.chain(first, layer.encoding), second),
        pj.chain(first, pj.chain(layer.encoding, second)),
    )
    assert [type(part) for part in left.parts] == [type(part) for part in right.parts]
    assert nnx.graphdef(left) == nnx.graphdef(right)
    run = jax.jit(
        lambda encoding, weights, x, tok: attend(
            encoding, *project(encoding, weights, x, tok), implementation='dense'
        )
    )
    close(run(left, layer.weights, layer.x, tokens()), layer())


@functools.cache
def every_part():
    """The parts of all examples, built once for all tests."""
    return [part for entry in ENTRIES for part in parts_of(pj.make(entry.card.example, **CONTEXT))]


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


def test_causal_only_encodings_refuse_an_encoder(layer):
    if layer.card.causal_only:
        with pytest.raises(
            SpecError, match=f'{layer.card.key} is defined for causal attention only'
        ):
            make(layer.entry, causal=False)
    else:
        make(layer.entry, causal=False)


def test_determinism(layer):
    equal_trees(nnx.state(make(layer.entry)), layer.state)
    np.testing.assert_array_equal(layer(), layer())
    place = layer.encoding.place
    equal_trees(place(tokens()), place(tokens()))
    equal_trees(place(tokens(), key=jax.random.key(3)), place(tokens(), key=jax.random.key(3)))


def test_a_checkpoint_restores_it(layer):
    saved = jax.tree.map(np.asarray, nnx.to_pure_dict(layer.state))
    fresh = make(layer.entry, seed=5)
    graphdef, state = nnx.split(fresh)
    assert graphdef == layer.graphdef
    if layer.promises.needs_training and not layer.encoding.opens('begin_stream'):
        assert gap(layer(state=state), layer()) > DIFFERENT
    nnx.replace_by_pure_dict(state, saved)
    equal_trees(state, layer.state)
    np.testing.assert_array_equal(layer(state=state), layer())


# Spec strings, golden files, test files, docstrings and the catalogue.


def test_the_example_round_trips(layer):
    parsed = parse(layer.card.example)
    assert parse(str(parsed)) == parsed and str(parse(str(parsed))) == str(parsed)
    built = [build(node, {**CONTEXT, 'rngs': nnx.Rngs(0)}) for node in parsed.nodes]
    assert layer.card.key in re.findall(r'[a-z_0-9]+', layer.card.example) and len(built) >= 1


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
    test = (ROOT / 'tests' / 'methods' / f'{card.key}_test.py').read_text(encoding='utf-8')
    named = [
        name
        for name in numbered(content) - {''}
        if re.search(rf'[\'"]{re.escape(name)}[\'"]', test)
    ]
    assert golden.name in test and named, (
        f'{golden.name} holds no numbers that {card.key}_test.py reads by name'
    )
    rows = [
        row
        for row in (ROOT / 'docs' / 'catalog.md').read_text(encoding='utf-8').splitlines()
        if f'| `{card.key}` |' in row
    ]
    shown = card.example.replace('|', '\\|')
    assert any(shown in row for row in rows), 'the catalogue is stale: python -m posenc_jax.catalog'


@every_method
def test_the_docstring_shows_and_cites(entry):
    text = ' '.join(entry.build.__doc__.split())
    for needed in ('Differs from ', 'Example:', '>>> ', 'Reference: '):
        assert needed in text, f'{entry.key}: the docstring has no {needed!r}'
    assert not entry.card.arxiv or entry.card.arxiv in text, (
        f'{entry.key}: the docstring does not cite {entry.card.arxiv}'
    )

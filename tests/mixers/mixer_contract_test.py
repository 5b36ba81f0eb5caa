"""Contract tests of mixers: they run on every registered mixer that can be a layer of a model,
built from the example on its Card, and call its `whole`, `start`, `fill` and `step`. A new mixer is
found in the registry, and needs no change here. `mixer_models_test.py` runs models of mixers.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.spec import build
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import entries
from posenc_jax.testing.jaxprs import largest_array
from tests.mixers.small import Joined, assert_all_learn, draw, moved, variables

LAYERS = [entry for entry in entries('mixer') if entry.is_layer]
# These read whole rows, later tokens too, so they refuse to decode; their own tests do the rest,
# such as `grit_test.py` for a layer that takes and returns a stream of pairs.
WHOLE = [entry for entry in LAYERS if getattr(entry.build, 'sees_later', False)]
ENTRIES = [entry for entry in LAYERS if entry not in WHOLE]
# Of those of whole rows, the ones that need no grid, points or graph.
ROW_ENTRIES = [*ENTRIES, *(entry for entry in WHOLE if entry.key == 'lightnet_whole')]
ROWS, LENGTH, HEADS, KV_HEADS, WIDTH, MODEL = 2, 20, 4, 2, 8, 16
CONTEXT = dict(
    heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH, model_dim=MODEL, train_len=16, layers=2
)
DOCUMENT = LENGTH // 2
PACKED = np.arange(LENGTH)[None] // DOCUMENT + np.zeros((ROWS, 1), int)
PADDED = np.ones((ROWS, LENGTH), bool)
PADDED[0, :3] = PADDED[1, 4:6] = PADDED[1, -4:] = False
CUTS = [(7, 13), (1, 7, *(1,) * 12), (LENGTH,)]  # lengths of the pieces
SAME, DIFFERENT = 2e-5, 1e-3  # the rounding of float32 sums of order one, and a difference
ONE, REAL = np.zeros_like(PACKED), np.ones_like(PADDED)
# All but the first have the same optional arrays, so they use the same compiled functions.
KINDS = {
    'plain': dict(),
    'padded': dict(segment=ONE, valid=PADDED),
    'packed': dict(segment=PACKED, valid=REAL),
    'packed_and_padded': dict(segment=PACKED, valid=PADDED),
}

# Mixers that are parts of a whole: the specs of layers that need each other, in order.
PARTS = {
    'gmu_hybrid': tuple(f"gmu_hybrid(part='{part}')" for part in ('scan', 'keys', 'cross', 'gmu'))
}

# Options that change how a mixer computes; they keep the laws, too.
OPTIONS = {
    'lavo': 'lavo(slots=4, window=3, learned=True, memory_bias=True)',
    'lightnet': 'lightnet(encoding=md_lrpe(form="cosine", learned=True))',
    'md_tpe': 'md_tpe(shape=(3, 2), terms=2)',
    'rmat': 'rmat(segment=4, chunk=2, slots=3, mix=True, through=True)',
}
OPTION_ENTRIES = [
    dataclasses.replace(entry, card=dataclasses.replace(entry.card, example=OPTIONS[entry.key]))
    for entry in ENTRIES
    if entry.key in OPTIONS
]

# The fast tests run the most expensive tests on this mixer alone, in a model with attention.
REPRESENTATIVE = 'cheems'
assert REPRESENTATIVE in {entry.key for entry in ENTRIES}
expensive = pytest.mark.full_where(
    condition=lambda entry, mixed=True: entry.key != REPRESENTATIVE or not mixed
)
every_option = pytest.mark.parametrize('entry', OPTION_ENTRIES, ids=lambda entry: entry.key)
named = lambda entry: entry.key + '-options' * (entry in OPTION_ENTRIES)
every_form = pytest.mark.parametrize('entry', [*ENTRIES, *OPTION_ENTRIES], ids=named)
every_form_of_rows = pytest.mark.parametrize('entry', [*ROW_ENTRIES, *OPTION_ENTRIES], ids=named)
every_mixer = pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry.key)
every_mixer_of_rows = pytest.mark.parametrize('entry', ROW_ENTRIES, ids=lambda entry: entry.key)


def make(entry, seed=0):
    rngs, built = nnx.Rngs(seed), []
    for spec in PARTS.get(entry.key, (entry.card.example,)):
        (node,) = parse_layer(spec).nodes
        built.append(build(node, {**CONTEXT, 'rngs': rngs}))
    return moved(Joined(built) if entry.key in PARTS else built[0], 0.1, seed + 100)


@functools.cache
def mixer_of(entry):
    return make(entry)


X = draw(4, ROWS, LENGTH, MODEL)


@functools.partial(jax.jit, static_argnums=0)
def _whole(graphdef, state, x, tok):
    return nnx.merge(graphdef, state).whole(x, tok)


@functools.partial(jax.jit, static_argnums=0)
def _step(graphdef, state, x, tok, memory, cursor):
    return nnx.merge(graphdef, state).step(x, tok, memory, cursor)


@functools.partial(jax.jit, static_argnums=0)
def _fill(graphdef, state, x, tok, count=None):
    return nnx.merge(graphdef, state).fill(x, tok, LENGTH, count)


def whole(mixer, x=X, tok=None):
    """`whole`, compiled once for all inputs of one form."""
    return _whole(*nnx.split(mixer), x, pj.Tokens.of(length=x.shape[1]) if tok is None else tok)


def in_pieces(mixer, x, tok, cuts, step=_step):
    """The results of the steps over pieces of these lengths, joined, and the last state."""
    memory, out, cursor = mixer.start(len(x), tok), [], 0
    for size in cuts:
        piece = x[:, cursor : cursor + size]
        y, memory = step(*nnx.split(mixer), piece, tok, memory, jnp.asarray(cursor, jnp.int32))
        out.append(y)
        cursor += size
    return jnp.concatenate(out, axis=1), memory


def close(a, b, tolerance=SAME):
    np.testing.assert_allclose(
        np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance
    )


def close_trees(a, b):
    """Asserts that all leaves are finite and equal. The absolute tolerance grows with the largest
    entry.
    """
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.isfinite(ours).all()
        largest = float(np.abs(theirs).max(initial=1.0))  # some are empty
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=5 * SAME * largest)


def shapes_of(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


def gap(a, b):
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))


@pytest.mark.parametrize('entry', WHOLE, ids=lambda entry: entry.key)
def test_mixers_of_whole_rows_refuse_to_decode(entry):
    mixer, tok = make(entry), pj.Tokens.of(length=LENGTH)
    for call in (
        lambda: mixer.start(ROWS, tok),
        lambda: mixer.fill(X, tok, LENGTH),
        lambda: mixer.step(X[:, :1], tok, None, jnp.int32(0)),
    ):
        with pytest.raises(ValueError, match=f'{entry.key} reads .*cannot decode token by token'):
            call()


# Shapes, dtypes, states.


@every_form_of_rows
def test_the_result_has_the_dtype_of_the_input_and_the_state_is_float32(entry):
    mixer, x = mixer_of(entry), jnp.asarray(X, jnp.bfloat16)
    tok = pj.Tokens.of(**KINDS['packed_and_padded'])
    out = jax.eval_shape(mixer.whole, x, tok)
    assert (out.shape, out.dtype) == (X.shape, jnp.bfloat16)
    if not isinstance(mixer, RecurrentMixer):
        return
    state = mixer.start(ROWS, tok)
    for leaf in jax.tree.leaves(state.inner):
        assert leaf.dtype == jnp.float32 and leaf.shape[0] == ROWS
    after_prompt = jax.eval_shape(lambda x: mixer.fill(x, tok, LENGTH)[1], x)
    step = lambda x: mixer.step(x, tok, state, jnp.int32(3))
    y, after_step = jax.eval_shape(step, x[:, 3:4])
    assert (y.shape, y.dtype) == ((ROWS, 1, MODEL), jnp.bfloat16)
    assert shapes_of(after_prompt) == shapes_of(after_step) == shapes_of(state)
    longer = mixer.start(ROWS, pj.Tokens.of(length=50 * LENGTH))
    assert shapes_of(longer) == shapes_of(state), 'the state depends on the capacity'


@every_mixer_of_rows
def test_every_variable_declares_the_role_of_each_axis(entry):
    found = variables(mixer_of(entry))
    for variable in found:
        assert isinstance(variable, (nnx.Param, Constant)), type(variable)
        axes = variable.get_metadata().get('axes')
        assert axes is not None and len(axes) == variable.get_value().ndim, variable
        for size, role in zip(variable.get_value().shape, axes):
            expected = {'heads': HEADS, 'kv_heads': KV_HEADS, 'width': MODEL}.get(role, size)
            assert size == expected, f'an axis of {size} has the role {role!r}'
    trained = any(isinstance(variable, nnx.Param) for variable in found)
    assert entry.card.promises.needs_training == trained


@expensive
@every_form_of_rows
def test_bfloat16_is_close_to_float32(entry):
    tok = pj.Tokens.of(length=LENGTH)
    if entry.card.promises.relative:  # where the error of a position in bfloat16 is above 1
        tok = dataclasses.replace(tok, pos=13 * tok.pos + 1000)
    low = jnp.asarray(X, jnp.bfloat16)
    exact = whole(mixer_of(entry), low.astype(jnp.float32), tok)
    error = np.abs(np.asarray(whole(mixer_of(entry), low, tok), np.float32) - exact)
    scale = float(np.abs(exact).max())
    assert np.median(error) < 0.01 * scale and error.max() < 0.06 * scale, (error.max(), scale)


# Steps.


@pytest.mark.full_where(
    condition=lambda entry, kind: (
        kind == 'plain' or (entry.key != REPRESENTATIVE and kind != 'packed_and_padded')
    )
)
@pytest.mark.parametrize(
    'entry, kind',
    [
        pytest.param(entry, kind, id=f'{kind}-{named(entry)}')
        for entry in (*ENTRIES, *OPTION_ENTRIES)
        for kind in KINDS
        if kind != 'plain' or entry.key == REPRESENTATIVE  # it would be compiled separately
    ],
)
def test_steps_in_any_cut_equal_the_whole(entry, kind):
    mixer = mixer_of(entry)
    tok = pj.Tokens.of(length=LENGTH, **KINDS[kind])
    expected, real = np.asarray(whole(mixer, tok=tok)), KINDS[kind].get('valid', REAL)
    for cuts in CUTS:
        out = in_pieces(mixer, X, tok, cuts)[0]
        close(np.asarray(out)[real], expected[real])
    # What a prompt leaves behind, and a row of which only the first tokens count.
    cut, count = CUTS[0][0], jnp.int32(CUTS[0][0])
    parts = nnx.split(mixer)
    for filled in (_fill(*parts, X[:, :cut], tok.slice(0, cut)), _fill(*parts, X, tok, count)):
        close(np.asarray(filled[0])[:, :cut][real[:, :cut]], expected[:, :cut][real[:, :cut]])
        rest = np.asarray(_step(*parts, X[:, cut:], tok, filled[1], count)[0])
        close(rest[real[:, cut:]], expected[:, cut:][real[:, cut:]])


@pytest.mark.full
@every_option
def test_steps_and_documents_longer_than_a_piece(entry):
    """A piece is what a mixer computes at once; the backward pass computes it again."""
    mixer, length, cut = mixer_of(entry), 100, 75
    x, valid = draw(5, ROWS, length, MODEL), np.ones((ROWS, length), bool)
    valid[0, :3] = valid[1, 70:73] = valid[1, -4:] = False
    tok = pj.Tokens.of(segment=np.arange(length)[None] // cut + 0 * valid, valid=valid)
    expected = np.asarray(whole(mixer, x, tok))
    close(np.asarray(in_pieces(mixer, x, tok, (80, 1, 19))[0])[valid], expected[valid])
    alone = np.asarray(whole(mixer, x[:, cut:], tok.slice(cut, length - cut)))
    close(alone[valid[:, cut:]], expected[:, cut:][valid[:, cut:]])
    loss = lambda x: jnp.where(valid[..., None], mixer.whole(x, tok) ** 2, 0).sum()
    slope = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x)))
    assert np.isfinite(slope).all() and not slope[~valid].any()


# Padding, packing, causality.


@every_mixer_of_rows
def test_padding_is_finite_and_does_not_leak(entry):
    mixer = mixer_of(entry)
    for kind in ('padded', 'packed_and_padded'):
        tok = pj.Tokens.of(**KINDS[kind])
        out = whole(mixer, tok=tok)
        assert np.isfinite(out).all()
        other = whole(mixer, np.where(PADDED[..., None], X, np.float32(1e3)), tok)
        close(np.asarray(other)[PADDED], np.asarray(out)[PADDED], 1e-6)


COTANGENT = draw(9, ROWS, LENGTH, MODEL)


@functools.partial(jax.jit, static_argnums=0)
def _influence(graphdef, state, tok, cotangent):
    whole = nnx.merge(graphdef, state).whole
    return jax.grad(lambda x: (whole(x, tok) * cotangent).sum())(X)


def influence(mixer, tok, outputs):
    """The largest gradient of each input row by a random sum of the chosen output rows, [L]."""
    cotangent = np.where(outputs[:, None], COTANGENT, np.float32(0))
    return np.abs(_influence(*nnx.split(mixer), tok, cotangent)).max(axis=(0, 2))


@expensive
@every_form
def test_causality(entry):
    """The gradients of earlier outputs by later inputs are exactly zero, and changed later inputs
    leave earlier outputs exactly the same. A packed document sees nothing of the others.
    """
    mixer, place = mixer_of(entry), np.arange(LENGTH)
    if not entry.card.causal_only:
        return
    reached = influence(mixer, pj.Tokens.of(segment=ONE), place < 7)
    assert not reached[7:].any() and (reached[:7] > 1e-6).all()
    later = X.copy()
    later[:, 7:] = -5.0
    before = (np.asarray(whole(mixer, x))[:, :7] for x in (later, X))
    np.testing.assert_array_equal(*before)
    reached = influence(mixer, pj.Tokens.of(segment=PACKED), place >= DOCUMENT)
    assert not reached[:DOCUMENT].any() and (reached[DOCUMENT:] > 1e-6).all()


# Gradients, jit, devices, memory.


@expensive
@every_form
def test_gradients_are_finite_and_those_of_the_steps(entry):
    """Also where rows are padded. Every parameter has a gradient."""
    graphdef, params, rest = nnx.split(mixer_of(entry), nnx.Param, ...)
    tok = pj.Tokens.of(**KINDS['packed_and_padded'])
    cotangent = np.where(PADDED[..., None], COTANGENT, np.float32(0))

    def loss(how, params, x):
        return (how(nnx.merge(graphdef, params, rest), x) * cotangent).sum()

    step = lambda graphdef, state, *rest: nnx.merge(graphdef, state).step(*rest)
    gradient = lambda how: jax.jit(jax.grad(functools.partial(loss, how), (0, 1)))(params, X)
    ours = gradient(lambda mixer, x: mixer.whole(x, tok))
    close_trees(ours, gradient(lambda mixer, x: in_pieces(mixer, x, tok, (19, 1), step)[0]))
    assert_all_learn(ours[0], 1e-6)
    assert not np.asarray(ours[1])[~PADDED].any(), 'padding has a gradient'


@pytest.mark.full
@every_mixer_of_rows
def test_jit_equals_eager(entry):
    mixer, tok = mixer_of(entry), pj.Tokens.of(**KINDS['packed_and_padded'])
    eager = mixer.whole(jnp.asarray(X), tok)
    close(np.asarray(eager)[PADDED], np.asarray(whole(mixer, tok=tok))[PADDED])


def traced(mixer, length):
    """One forward and backward pass, traced."""
    graphdef, params, rest = nnx.split(mixer, nnx.Param, ...)
    tok = pj.Tokens.of(length=length)
    loss = lambda params, x: nnx.merge(graphdef, params, rest).whole(x, tok).sum()
    shape = jax.ShapeDtypeStruct((1, length, MODEL), jnp.float32)
    return jax.jit(jax.grad(loss, (0, 1))).trace(params, shape)


@pytest.mark.full
@every_mixer
def test_memory_is_linear_in_the_length(entry):
    """No array has an entry for each pair of tokens. For one mixer the compiler is asked, too."""
    mixer, length = mixer_of(entry), 4096
    largest = largest_array(traced(mixer, length))
    assert (largest < length**2) == entry.card.promises.blockwise, f'{largest / length} a token'
    if entry.key == REPRESENTATIVE:
        sizes = (
            traced(mixer, length).lower().compile().memory_analysis().temp_size_in_bytes
            for length in (1024, 2048)
        )
        assert 1 / np.divide(*sizes) < 2.2


# The promise on positions, determinism, checkpoints.


@every_mixer
def test_promise_relative(entry):
    mixer, tok = mixer_of(entry), pj.Tokens.of(length=LENGTH)
    distance = gap(whole(mixer, tok=dataclasses.replace(tok, pos=tok.pos + 300)), whole(mixer))
    assert distance < 5 * SAME or distance > DIFFERENT, f'undecided: {distance}'
    assert (distance < 5 * SAME) == entry.card.promises.relative


@every_mixer
def test_a_checkpoint_restores_it(entry):
    chex.assert_trees_all_equal(nnx.state(make(entry)), nnx.state(mixer_of(entry)))
    saved = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(mixer_of(entry))))
    graphdef, state = nnx.split(make(entry, seed=5))
    assert graphdef == nnx.graphdef(mixer_of(entry))
    fresh = nnx.merge(graphdef, state)
    if entry.card.promises.needs_training:
        assert gap(whole(fresh), whole(mixer_of(entry))) > DIFFERENT
    nnx.replace_by_pure_dict(state, saved)
    restored = nnx.merge(graphdef, state)
    np.testing.assert_array_equal(whole(restored), whole(mixer_of(entry)))


# Spec strings.


@every_mixer
def test_the_example_round_trips(entry):
    parsed = parse_layer(entry.card.example)
    assert str(parse_layer(str(parsed))) == str(parsed)
    assert [node.entry.key for node in parsed.nodes] == [entry.key]


@every_mixer
def test_wrong_specs_are_refused(entry):
    with pytest.raises(SpecError, match=f"{entry.key} has no argument 'nonsense'"):
        parse_layer(f'{entry.key}(nonsense=1)')
    with pytest.raises(SpecError, match=f'{entry.key} replaces attention, so it stands alone'):
        parse_layer(f'{entry.card.example} | rope()')

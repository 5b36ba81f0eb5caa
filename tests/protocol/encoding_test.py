"""Tokens as the data pipeline makes them, and an encoding whose doors are all shut."""

import copy
import inspect
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.products import over_batch, scaled_dot_product, weighted_sum
from posenc_jax.protocol import capabilities
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.calls import call, changed
from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS, Encoding
from posenc_jax.protocol.families import Bias, Mask, signed_distance
from posenc_jax.protocol.tokens import bounds


def test_tokens_without_arguments_know_their_place_alone():
    tok = pj.Tokens.of(length=4)
    assert tok.pos.tolist() == tok.index.tolist() == [[0, 1, 2, 3]]
    assert tok.length == 4 and tok.segment is None and tok.valid is None and tok.feats == {}
    assert pj.Tokens.of(positions=np.zeros((2, 3, 2), np.int32)).pos.shape == (2, 3, 2)


F, T = False, True


@pytest.mark.parametrize(
    'arguments, pos',
    [
        (dict(segment=[[7, 7, 7, 3, 3, 9]]), [[0, 1, 2, 0, 1, 0]]),
        (dict(segment=jnp.array([[7, 7, 7, 3, 3, 9]])), [[0, 1, 2, 0, 1, 0]]),
        (dict(segment=[[1, 1, 2, 2], [1, 2, 3, 3]]), [[0, 1, 0, 1], [0, 0, 0, 1]]),
        (dict(valid=[[F, F, T, T, T]]), [[0, 0, 0, 1, 2]]),
        (dict(valid=[[T, T, F, F]]), [[0, 1, 0, 0]]),
        (dict(valid=[[F, F, F]]), [[0, 0, 0]]),
        (
            dict(segment=[[0, 1, 1, 2, 2, 2, 3]], valid=[[F, T, T, T, T, T, F]]),
            [[0, 0, 1, 0, 1, 2, 0]],
        ),
        (dict(segment=[[1, 1, 1, 2, 2, 2]], valid=[[F, T, T, F, T, T]]), [[0, 0, 1, 0, 0, 1]]),
        (dict(positions=[[5, 5, 9]]), [[5, 5, 9]]),
        (dict(positions=[[0.5, 1.5]], segment=[[0, 1]]), [[0.5, 1.5]]),
    ],
)
def test_positions(arguments, pos):
    """They restart in every document, skip padding, and are those that are given. Those of padding
    have no meaning, but are not negative.
    """
    tok = pj.Tokens.of(**arguments)
    real = True if tok.valid is None else tok.valid
    np.testing.assert_array_equal(np.where(real, tok.pos, 0), pos)
    assert (tok.pos >= 0).all()


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(), 'needs one length of at least 1, got none'),
        (dict(length=3, segment=[[0, 0]]), r'\[2, 3\]'),
        (dict(valid=[[True]], segment=[[0, 0]]), r'\[1, 2\]'),
        (dict(segment=[0, 0]), r'segment.*\(2,\).*\[B, L\]'),
        (dict(valid=[True, True]), r'valid.*\(2,\).*\[B, L\]'),
        (dict(positions=[0, 1]), r'positions.*\(2,\)'),
        (
            dict(segment=[[0, 0], [0, 0], [0, 0]], valid=[[True, True], [True, True]]),
            r'rows.*\[2, 3\]',
        ),
        (dict(length=0), 'at least 1'),
        (dict(positions=[[0.0, float('nan')]]), 'finite in float32, got nan'),
        (dict(positions=np.array([[0.0, 1e39]])), 'finite in float32, got inf'),
        (dict(positions=jnp.array([[0, jnp.inf]], jnp.bfloat16)), 'finite in float32, got inf'),
        (dict(segment=[[0, 0, 0], [7, 8, 7]]), 'segment 7 of row 1 is in several pieces'),
        (dict(segment=[[4, 0, 4]], valid=[[1, 0, 1]]), 'segment 4 of row 0 is in several pieces'),
        (dict(segment=[[0, 2**32]]), r'segment must lie in .* \(32 bits\)'),
        (dict(index=[[7, 8]], segment=[[1, 1]]), 'needs rank too'),
        (dict(index=[[8, 8]]), 'index must ascend'),
        (dict(positions=[[1j]]), 'positions must be real'),
        (dict(positions=np.array([[2**31]])), r'positions must lie in .* \(32 bits\)'),
        (dict(length=True), 'needs one length of at least 1'),
        (dict(length=2.5), 'one length of at least 1'),
        (dict(index=[[0.5, 1.0]]), 'index must be integers'),
        (dict(index=[7, 8]), r'index has shape \(2,\)'),
        (dict(segment=[[0.2, 0.7]]), 'segment must be integers, got float'),
        (dict(valid=[[0.0, 1.0]]), 'valid must be booleans, got float'),
    ],
)
def test_wrong_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        pj.Tokens.of(**arguments)


def test_padding_is_no_piece_of_a_document():
    padded = pj.Tokens.of(segment=[[0, 1, 1, 0, 0]], valid=[[False, True, True, True, True]])
    assert padded.rank.tolist() == [[0, 0, 1, 0, 1]]


def test_tokens_are_a_pytree_that_cuts():
    tok = pj.Tokens.of(segment=[[0, 0, 1, 1]], valid=[[True, True, True, False]]).with_feats(
        probe=jnp.ones((1, 4, 2))
    )
    cut = jax.jit(lambda tok, start: tok.slice(start, 2))(tok, 1)
    assert (
        cut.index.tolist() == [[1, 2]] and cut.feats['probe'].shape == (1, 2, 2) and cut.length == 2
    )
    assert tok.without_feats().feats == {} and set(tok.feats) == {'probe'}
    assert set(tok.with_feats(other=tok.index).feats) == {'probe', 'other'}


def test_bounds_read_valid_tokens_only():
    tok = pj.Tokens.of(segment=[[3, 4, 5, 6]], valid=[[False, True, True, False]])
    low_high = bounds(tok)
    assert [
        int(x)
        for x in (
            low_high.index_low,
            low_high.index_high,
            low_high.segment_low,
            low_high.segment_high,
        )
    ] == [1, 2, 4, 5]
    nothing = bounds(pj.Tokens.of(valid=[[False, False]]))
    assert nothing.index_low > nothing.index_high and nothing.segment_low is None


def test_every_door_is_shut_by_default():
    encoding, tok = Encoding(), pj.Tokens.of(length=3)
    q = k = v = jnp.ones((1, 3, 2, 4))
    assert not any(encoding.opens(door) for door in (*DOORS, *CAPABILITIES))
    assert encoding.place(tok) is tok and encoding.embed(q, tok) is q
    assert encoding.project(q, k, v, tok, tok) == (q, k, v, tok, tok)
    assert encoding.logits(q, q, k, tok, tok, None, ()) == (q, ())
    assert encoding.mask(tok, tok) is None and encoding.may_see(None, None) is True
    assert encoding.cached == 'encoded' and encoding.lookback == 0


def test_encodings_without_a_capability_are_passed_by():
    encoding, tok = Encoding(), pj.Tokens.of(length=3)
    x = jnp.ones((1, 3, 2, 4))
    projected = capabilities.qkv(encoding, x, x, lambda x: (x, x, x), tok)
    assert projected[0].shape == x.shape and capabilities.merge(encoding, x) is x
    assert capabilities.first_carry(encoding, x, tok) == ()
    methods = {
        name
        for kind in vars(capabilities).values()
        if isinstance(kind, type) and kind.__module__ == capabilities.__name__
        for name in vars(kind)
        if not name.startswith('_')
    }
    assert methods == set(CAPABILITIES)


@pytest.mark.parametrize(
    'name, instead', [('match', 'logits'), ('score', 'logits'), ('init_carry', 'first_carry')]
)
def test_a_door_that_was_replaced_is_refused(name, instead):
    with pytest.raises(TypeError, match=f'Old.{name} would never be called: write {instead}'):
        type('Old', (Encoding,), {name: lambda self: None})


def test_a_door_that_is_overridden_is_open():
    alibi = pj.make('alibi()', heads=2)
    assert alibi.opens('logits') and not alibi.opens('collect')
    chained = pj.make('alibi() | causal()', heads=2)
    assert chained.opens('logits') and chained.opens('mask') and not chained.opens('embed')


class Whole(SeveralInputs):
    """An encoding whose options open other doors."""

    traits = frozenset({'leaves_gaps'})

    def __init__(self, size: Size = 1, masks: bool = True):
        self.size = size

    def mask(self, tq, tk):
        return tk.index[:, None, None, :] % 2 == 0


class Unmasked(Whole, where=lambda given: not given['masks']):
    traits = frozenset()
    mask = Encoding.mask


class Narrow(Whole, where=lambda given: given['size'] == 1):
    qkv = merge = None


@pytest.mark.parametrize('name', ['traits', 'adds'])
def test_an_unknown_trait_is_refused(name):
    with pytest.raises(TypeError, match="Own: 'rotate' is no trait; did you mean 'rotates'"):
        type('Own', (Wrapper,), {name: frozenset({'rotate', 'sees_later'})})


@pytest.mark.parametrize(
    'arguments, opened, traits, kinds',
    [
        (dict(size=2), {'mask', 'qkv', 'merge'}, {'leaves_gaps'}, ()),
        (dict(), {'mask'}, {'leaves_gaps'}, (Narrow,)),
        (dict(size=2, masks=False), {'qkv', 'merge'}, set(), (Unmasked,)),
        (dict(masks=False), set(), set(), (Narrow, Unmasked)),
    ],
)
def test_an_option_that_opens_other_doors_is_a_variant(arguments, opened, traits, kinds):
    made, tok = Whole(**arguments), pj.Tokens.of(length=2)
    assert {door for door in (*DOORS, *CAPABILITIES) if made.opens(door)} == opened
    assert made.traits == traits and all(isinstance(made, kind) for kind in (Whole, *kinds))
    assert (made.mask(tok, tok) is None) == ('mask' not in opened)
    assert repr(made) == call('Whole', changed(arguments, inspect.signature(Whole).parameters))
    again = Whole(**arguments), nnx.merge(*nnx.split(made)), copy.deepcopy(made)
    assert all(type(one) is type(made) for one in again)
    assert nnx.graphdef(again[0]) == nnx.graphdef(made)


class Below(Whole):
    def __init__(self, masks: bool = True, size: Size = 2):
        super().__init__(size=size, masks=masks)


def of_whole(*bases, name='Own', **body):
    """A variant of a class of its own, under the same condition as another one."""

    class Own(Encoding):
        def __init__(self, wide: bool = False, far: bool = False):
            pass

    class Wide(Own, where=lambda given: given['wide']):
        mask = Whole.mask

    where = lambda given: given['far']
    types.new_class(name, bases or (Own,), dict(where=where), lambda space: space.update(body))
    return Own


def test_a_subclass_without_what_a_variant_does_is_refused():
    assert type(Below()) is Below
    with pytest.raises(ValueError, match='Whole size must be at least 1, got 0'):
        Whole(size=0)


UNFIT = {  # what the message says -> the call
    'Below with these arguments needs what Unmasked does: inherit from this class': lambda: Below(
        masks=False
    ),
    'needs what Unmasked and Narrow do: inherit from these classes': lambda: Below(False, size=1),
    'Narrow: these arguments do not ask for the variant Narrow; give .* or use Whole': lambda: (
        Narrow(size=2)
    ),
    "for Wide and for Far, which both change 'mask'": lambda: of_whole(
        name='Far', mask=Encoding.mask
    )(wide=True, far=True),
    'Own is a variant by `where`: it must inherit directly from an encoding': lambda: of_whole(
        Encoding
    ),
    'an encoding that has an `__init__`, and have none': lambda: of_whole(Narrow),
    'and have none of its own': lambda: of_whole(Whole, __init__=lambda self: None),
}


@pytest.mark.parametrize('message', UNFIT)
def test_wrong_variants_are_refused(message):
    known = list(Whole._variants)
    with pytest.raises(TypeError, match=message):
        UNFIT[message]()
    assert Whole._variants == known and Encoding._variants == []


def test_variants_that_are_written_anew_or_inherit_from_more():
    class Own(Encoding):
        def __init__(self, far: bool = False):
            pass

    for opened in ({'mask'}, {'qkv', 'merge'}):
        bases = (SeveralInputs, Own) if 'qkv' in opened else (Own,)
        own = dict(mask=Whole.mask) if 'mask' in opened else {}
        fill = lambda space, own=own: space.update(own, __qualname__='Far')
        types.new_class('Far', bases, dict(where=lambda given: given['far']), fill)
        made = Own(far=True)
        assert {door for door in (*DOORS, *CAPABILITIES) if made.opens(door)} == opened
        assert repr(made) == 'Own(far=True)'
    Own.registered_key = 'own'  # as `register` does, which may come after the variants
    assert repr(made) == 'own(far=True)'


@pytest.mark.parametrize('arguments', [dict(), dict(masks=False), dict(size=2, masks=False)])
def test_the_class_of_a_variant_can_be_pickled_and_has_one_hash(arguments):
    made, other = Whole(**arguments), Whole(**arguments)
    assert pickle.loads(pickle.dumps(type(made))) is type(made)
    assert hash(nnx.graphdef(made)) == hash(nnx.graphdef(other))
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made) and repr(again) == repr(made)


class Around(Wrapper):
    """A composite whose variant shuts what its part opens."""

    def __init__(self, encoding: Encoding, quiet: bool = False):
        self.encoding = encoding


class Quiet(Around, where=lambda given: given['quiet']):
    adds = frozenset({'sees_later'})
    mask = Encoding.mask
    qkv = merge = None


def test_a_variant_of_a_composite_shuts_doors_of_its_parts_and_adds_traits():
    loud, quiet = (Around(Whole(size=2), quiet=quiet) for quiet in (False, True))
    opened = lambda made: {door for door in (*DOORS, *CAPABILITIES) if made.opens(door)}
    assert opened(loud) == {'mask', 'qkv', 'merge'} and opened(quiet) == set()
    assert loud.traits == {'leaves_gaps'} and quiet.traits == {'leaves_gaps', 'sees_later'}
    tok = pj.Tokens.of(length=2)
    assert loud.mask(tok, tok) is not None and quiet.mask(tok, tok) is None


@pytest.mark.full_but_one
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_products_share_key_heads(kv_heads):
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, n, 5, 3))
        for i, n in enumerate((4, kv_heads, kv_heads))
    )
    repeated = lambda a: np.repeat(np.asarray(a, np.float64), 4 // kv_heads, axis=1)
    logits = np.einsum('bnth,bnsh->bnts', np.asarray(q, np.float64), repeated(k)) / np.sqrt(3)
    np.testing.assert_allclose(scaled_dot_product(q, k), logits, atol=1e-6)
    np.testing.assert_allclose(
        weighted_sum(scaled_dot_product(q, k), v), logits @ repeated(v), atol=1e-5
    )


def test_logits_of_bfloat16_are_float32():
    q = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    assert scaled_dot_product(q, q).dtype == jnp.float32


@pytest.mark.full
def test_families_leave_one_method_to_write():
    class Linear(Bias):
        def bias(self, q_pos, k_pos):
            return -signed_distance(q_pos, k_pos)[:, None].astype(jnp.bfloat16)

    class Even(Mask):
        def allow(self, tq, tk):
            return (tk.index % 2 == 0)[:, None, None, :]

    tok = pj.Tokens.of(length=3)
    s, _ = Linear().logits(jnp.zeros((1, 1, 3, 3)), None, None, tok, tok, None, ())
    assert s.dtype == jnp.float32 and s[0, 0, 2].tolist() == [-2, -1, 0]
    both = pj.make(pj.chain(Linear(), Even()), causal=True)  # neither is registered
    assert both.cached == 'encoded'
    assert both.mask(tok, tok)[0, 0].tolist() == [
        [True, False, False],
        [True, False, False],
        [True, False, True],
    ]


def test_rank_counts_the_real_tokens_of_a_document_whatever_their_positions():
    tok = pj.Tokens.of(
        positions=[[7, 7, 3, 3, 9, 9]],
        segment=[[0, 0, 0, 1, 1, 1]],
        valid=[[False, True, True, True, True, False]],
    )
    assert tok.rank.tolist() == [[0, 0, 1, 0, 1, 1]] and tok.pos.tolist() == [[7, 7, 3, 3, 9, 9]]
    assert pj.Tokens.of(length=3).rank.tolist() == [[0, 1, 2]]


def test_tokens_from_the_middle_of_a_sequence():
    query = pj.Tokens.of(index=[[11]])
    assert [leaf.tolist() for leaf in jax.tree.leaves(query)] == [[[11]]] * 3
    behind = pj.Tokens.of(index=[[7, 8]], segment=[[1, 1]], rank=[[2, 3]], positions=[[5.0, 6.0]])
    assert behind.rank.tolist() == [[2, 3]] and behind.pos.tolist() == [[5.0, 6.0]]


@pytest.mark.full_but_one
@pytest.mark.parametrize('batch', [1, 3, 16, 17])
def test_the_gradient_of_what_rows_share_is_the_sum_over_them(batch):
    shared = jnp.arange(6.0).reshape(1, 1, 2, 3)
    weights = jax.random.normal(jax.random.key(batch), (batch, 1, 2, 3))
    found, gradient = jax.value_and_grad(lambda a: (weights * over_batch(a, batch) ** 2).sum())(
        shared
    )
    np.testing.assert_allclose(found, (weights * shared**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, 2 * shared * weights.sum(0, keepdims=True), rtol=1e-5, atol=1e-5
    )

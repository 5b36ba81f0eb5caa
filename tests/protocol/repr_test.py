"""The repr of an encoding is its spec string, and `make` builds an equal encoding from it."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.methods.extend import extend
from posenc_jax.methods.rope import Rotary
from posenc_jax.methods.yarn import YaRN
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import entries

CONTEXT = dict(heads=4, kv_heads=2, head_dim=8, model_dim=32, train_len=16)


def abstract(spec):
    """The structure of an encoding, and the shapes and dtypes of its variables."""
    return nnx.eval_shape(lambda: pj.make(spec, **CONTEXT))


def equal(one, two):
    if nnx.graphdef(one) != nnx.graphdef(two):
        return False
    pairs = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(two)), strict=True)
    return all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


EXAMPLES = [
    *(entry.card.example for entry in entries('encoding')),
    *(entry.card.example for entry in entries('frequencies')),
]


@pytest.mark.parametrize('spec', [s for s in EXAMPLES if s])
def test_make_of_the_repr_is_equal(spec):
    encoding = abstract(spec)
    again = abstract(repr(encoding))
    assert equal(encoding, again) and repr(again) == repr(encoding)


def test_another_argument_is_not_equal():
    assert not equal(abstract('rope()'), abstract('rope(base=500.0)'))
    assert not equal(abstract('sinusoidal()'), abstract('rope()'))


@pytest.mark.parametrize(
    'spec, shown',
    [
        ('alibi()', 'alibi()'),
        ('alibi', 'alibi()'),
        ('alibi(heads=4)', 'alibi(heads=4)'),
        ('rope(base=10000)', 'rope()'),
        ('rope(500)', 'rope(base=500.0)'),
        ('rope(freqs=yarn(4))', 'rope(freqs=yarn(factor=4.0))'),
        ('rope(freqs=yarn(4, train_len=9))', 'rope(freqs=yarn(factor=4.0, train_len=9))'),
        ('rope() | alibi()', 'rope() | alibi()'),
        ('irpe(on="qkv")', "irpe(on='qkv')"),
        ('learned_grid(4, 6, size=[8, 64])', 'learned_grid(rows=4, columns=6, size=(8, 64))'),
        ('dca(encoding=rope(base=7.0))', 'dca(encoding=rope(base=7.0))'),
        (
            'per_head(rope() | window(size=4), alibi(), 2)',
            'per_head(first=rope() | window(size=4), second=alibi(), heads_of_first=2)',
        ),
    ],
)
def test_arguments_that_differ_from_their_defaults_are_shown(spec, shown):
    encoding = abstract(spec)
    assert repr(encoding) == str(encoding) == shown
    assert repr([encoding]) == f'[{shown}]'


def test_masks_of_make_are_parts_of_the_chain():
    encoding = pj.make('alibi()', causal=True, heads=4)
    assert repr(encoding) == 'alibi() | causal() | document()'
    assert repr(pj.make(repr(encoding), causal=True, heads=4)) == repr(encoding)


@pytest.mark.parametrize(
    'encoding, extension, shown',
    [
        ('rope(base=500.0)', 'yarn(factor=4.0)', 'rope(base=500.0, freqs=yarn(factor=4.0))'),
        ('rope(freqs=pi(factor=2.0))', 'yarn(factor=4.0)', 'rope(freqs=yarn(factor=4.0))'),
        ('rope() | alibi()', 'dca(chunk=8)', 'dca(encoding=rope(), chunk=8) | alibi()'),
        ('alibi()', 'alibi_pi(factor=2.0)', 'alibi_pi(factor=2.0, encoding=alibi())'),
        (
            'learned_absolute(max_len=8, ids="plain")',
            'segmented_sequences(factor=4)',
            'learned_absolute(max_len=32)',
        ),
    ],
)
def test_extended_encodings(encoding, extension, shown):
    extended = nnx.eval_shape(lambda: extend(pj.make(encoding, **CONTEXT), extension, train_len=16))
    assert repr(extended) == shown
    assert equal(extended, abstract(shown))


def test_encodings_that_no_spec_string_made():
    class Steep(Encoding):
        def __init__(self, slope, table=None):
            self.slope = slope

    class Steeper(Steep):
        def __init__(self, factor=2.0):
            super().__init__(slope=factor * 3)

    class Turned(Rotary):
        pass

    assert repr(ALiBi(heads=4)) == 'alibi(heads=4)'
    assert repr(Rotary(freqs=YaRN(factor=4.0, train_len=8), head_dim=8)) == (
        'rope(freqs=yarn(factor=4.0, train_len=8), head_dim=8)'
    )
    assert repr(Steep(1.5)) == 'Steep(slope=1.5)' and repr(Steeper()) == 'Steeper()'
    assert repr(Steep(jnp.ones(()), table=jnp.ones(3))) == 'Steep(slope=..., table=...)'
    assert repr(Turned(head_dim=8)) == 'Turned(head_dim=8)'  # not registered, though its base is
    with pytest.raises(TypeError, match='slope'):
        Steep()


def test_the_repr_survives_copies_and_compilation():
    encoding = pj.make('rope(base=500.0) | alibi()', heads=2, head_dim=4)
    for copy in (
        nnx.clone(encoding),
        nnx.merge(*nnx.split(encoding)),
        jax.jit(lambda e: e)(encoding),
    ):
        assert repr(copy) == 'rope(base=500.0) | alibi()'


def test_models_print_as_flax_prints_them():
    made = lambda: pj.Attention('rope() | fire(width=4)', width=8, heads=2, rngs=nnx.Rngs(0))
    text = repr(nnx.eval_shape(made))
    for needed in ('ChainedEncoding(', 'Rotary(', 'base=10000.0', 'w1=Param(', 'Projections('):
        assert needed in text
    assert '_spec_arguments' not in text

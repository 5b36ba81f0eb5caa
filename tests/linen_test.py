"""Tests of the Linen modules: names and boxes of their variables, and what `apply` accepts."""

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

import posenc_jax as pj
from posenc_jax.lab.model import Transformer, TransformerConfig

WIDTH, HEADS = 16, 2
SPECS = (
    'rope() | t5_rpe()',
    'alibi()',
    'kerple()',
    'per_head(first=t5_rpe(), second=alibi(), heads_of_first=1)',
)
PROJECTIONS = {f'params/projections/{name}' for name in ('w_k', 'w_out', 'w_q', 'w_v')}
OF_ENCODING = {
    'rope() | t5_rpe()': {'params/encoding/parts/1/table': P(None, 'heads')},
    'alibi()': {'Constant/encoding/parts/0/slopes': P('heads')},
    'kerple()': {
        'params/encoding/parts/0/raw/a': P('heads'),
        'params/encoding/parts/0/raw/p': P('heads'),
    },
    SPECS[3]: {
        'params/encoding/parts/0/first/table': P(None, 'heads'),
        'Constant/encoding/parts/0/second/slopes': P('heads'),
        'Constant/encoding/parts/0/of_first': P('heads'),
        'Constant/encoding/parts/0/keys_of_first': P('kv_heads'),
    },
}


def layer(spec, **options):
    return pj.linen.Attention(spec, WIDTH, HEADS, **options)


def draw():
    return jax.random.normal(jax.random.key(1), (2, 6, WIDTH))


def flat(variables):
    return flatten_dict(nn.unbox(variables), sep='/')


def of_nnx(module, variables):
    """The values of an NNX module by the names of the variables of its Linen module."""
    own = {'/'.join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(module))}
    return unflatten_dict(
        {name: own[name.partition('/')[2]][...] for name in flat(variables)}, sep='/'
    )


class Layers(nn.Module):
    """Two layers with encodings of their own, and a cache of the first."""

    name_of_first: str | None = None

    @nn.compact
    def __call__(self, x):
        first = layer('rope() | t5_rpe()', name=self.name_of_first)
        y, _ = first.step(x[:, :4], first.start(2, 6))
        return layer('alibi()')(first(x)), y


@pytest.mark.parametrize('spec', SPECS)
def test_keys_are_strings_and_specs_carry_the_axes(spec):
    variables = jax.eval_shape(layer(spec).init, jax.random.key(0), draw())
    specs = flatten_dict(nn.get_partition_spec(variables), sep='/')
    assert {name: specs.pop(name) for name in OF_ENCODING[spec]} == OF_ENCODING[spec]
    assert specs.keys() == PROJECTIONS
    assert specs['params/projections/w_k'] == P('width', 'kv_heads', 'head_dim')


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', SPECS)
def test_the_result_is_that_of_the_nnx_layer(spec):
    x, own = draw(), pj.Attention(spec, WIDTH, HEADS, rngs=nnx.Rngs(0))
    variables = layer(spec).init(jax.random.key(5), x)
    unboxed = of_nnx(own, variables)
    for given in (unboxed, nn.meta.replace_boxed(variables, unboxed)):
        np.testing.assert_allclose(layer(spec).apply(given, x), own(x), atol=1e-6)


def test_the_class_is_named_for_what_it_is():
    variables = Layers().init(jax.random.key(0), draw())
    assert set(variables['params']) == {'Attention_0', 'Attention_1'}
    assert str(layer('rope()')).startswith('Attention(')
    fields = {f.name: f.default for f in dataclasses.fields(pj.linen.Attention)}
    for name, parameter in inspect.signature(pj.Attention).parameters.items():
        if name == 'rngs':
            continue
        missing = parameter.default is inspect.Parameter.empty
        assert fields[name] is (dataclasses.MISSING if missing else parameter.default), name


def test_variables_of_the_bridge_of_flax_are_read():
    """Their keys are integers, and their boxes are of another class."""
    x, spec = draw(), 'rope() | t5_rpe()'
    twin = nnx.bridge.to_linen(pj.Attention, spec, WIDTH, HEADS)
    variables = twin.init(jax.random.key(0), x)
    assert 1 in variables['params']['encoding']['parts']
    for given in (variables, nn.unbox(variables)):
        np.testing.assert_array_equal(layer(spec).apply(given, x), twin.apply(given, x))
    _, changed = layer(spec).apply(variables, x, mutable=['params'])
    assert list(changed['params']['encoding']['parts']) == [1]  # no second copy of a table

    second = layer('alibi()').init(jax.random.key(0), x)['params']
    nested = {'ToLinen_0': variables['params'], 'Attention_0': second}
    found, _ = Layers('ToLinen_0').apply({'params': nested}, x)
    expected = layer('alibi()').apply({'params': second}, twin.apply(variables, x))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    'given, message',
    [
        (lambda own: {}, "Attention: the variables lack 'params/encoding/parts/1/table' of shape"),
        (
            lambda own: layer('rope() | kerple()').init(jax.random.key(0), draw()),
            r"lack '.*/table' of shape \(32, 2\), but have 'params/encoding/parts/1/raw/a'",
        ),
        (
            lambda own: {'params': {**own['params'], 'projection': {'w_q': jnp.ones(2)}}},
            "no variable 'params/projection/w_q'; did you mean 'params/projections/w_q'",
        ),
        (
            lambda own: {'params': {**own['params'], 'encoding': {'parts': {1: {'table': 0.0}}}}},
            r"'params/encoding/parts/1/table' has shape \(\), expected \(32, 2\)",
        ),
    ],
    ids=['none', 'another encoding', 'unknown', 'another shape'],
)
def test_wrong_variables_are_refused(given, message):
    own = layer('rope() | t5_rpe()').init(jax.random.key(0), draw())
    with pytest.raises(ValueError, match=message) as caught:
        layer('rope() | t5_rpe()').apply(given(own), draw())
    assert '\n' not in str(caught.value)


def test_a_wrong_name_in_a_parent_says_where():
    own = Layers().init(jax.random.key(0), draw())
    with pytest.raises(ValueError, match="Attention at 'first': the variables lack 'params/enc"):
        Layers('first').apply(own, draw())


def test_missing_constants_are_computed_unless_they_were_drawn():
    x, alibi, drawn = draw(), layer('alibi()'), layer('kernelized_rpe()')
    variables = alibi.init(jax.random.key(0), x)
    alone = {'params': variables['params']}
    for apply in (alibi.apply, jax.jit(alibi.apply)):
        np.testing.assert_allclose(apply(alone, x), alibi.apply(variables, x), atol=1e-6)
    alone = {'params': drawn.init(jax.random.key(0), x)['params']}
    for apply in (drawn.apply, jax.jit(drawn.apply)):
        with pytest.raises(ValueError, match="lack 'Constant/encoding/parts/0/directions'"):
            apply(alone, x)


def test_an_encoding_that_is_given_stays_as_it_is():
    x, encoding = draw(), pj.make('t5_rpe()', heads=HEADS, head_dim=8, causal=True)
    before = encoding.parts[0].table[...]
    variables = jax.jit(layer(encoding).init)(jax.random.key(0), x)
    moved = jax.tree.map(lambda a: a + 1, variables)
    assert jax.jit(layer(encoding).apply)(moved, x).shape == x.shape
    assert encoding.parts[0].table[...] is before


def test_methods_are_found_by_name():
    x, variables = draw(), layer('rope()').init(jax.random.key(0), draw())
    apply = layer('rope()').apply
    cache = apply(variables, 2, 6, method='start')
    y, cache = apply(variables, x[:, :4], cache, method='step')
    y, cache = apply(variables, x[:, 4:], cache, nnx_method='step')
    np.testing.assert_allclose(y, apply(variables, x)[:, 4:], atol=1e-5)
    with pytest.raises(ValueError, match="nnx_method is 'stepp'; did you mean 'step'"):
        apply(variables, x, cache, nnx_method='stepp')


@pytest.mark.full
def test_stacked_layers_name_their_axis():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + layer('alibi() | t5_rpe()')(x), None

    stack = nn.scan(
        Block,
        variable_axes={'params': 0, 'Constant': 0},
        split_rngs={'params': True},
        length=3,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )()
    x = draw()
    variables = stack.init(jax.random.key(0), x, None)
    specs = nn.get_partition_spec(variables)
    parts = [specs[name]['Attention_0']['encoding']['parts'] for name in ('Constant', 'params')]
    assert parts == [
        {'0': {'slopes': P('layers', 'heads')}},
        {'1': {'table': P('layers', None, 'heads')}},
    ]
    y, _ = stack.apply(variables, x, None)
    for number in range(3):
        one = jax.tree.map(lambda a: a[number], nn.unbox(variables))
        x, _ = Block().apply(one, x, None)
    np.testing.assert_allclose(y, x, atol=1e-5)


class Model(pj.linen.Bridge):
    """A model whose layers have encodings in turn."""

    cfg: TransformerConfig

    def build(self, rngs):
        return Transformer(self.cfg, rngs=rngs)


@pytest.mark.full
def test_a_model_with_an_encoding_for_each_layer():
    cfg = TransformerConfig(
        vocab_size=11,
        train_len=8,
        layers=4,
        width=WIDTH,
        heads=HEADS,
        encoding='rope()',
        pattern=('kerple()', 't5_rpe()'),
    )
    ids = jnp.ones((1, 5), jnp.int32)
    variables = Model(cfg).init(jax.random.key(0), ids)
    arrays, specs = flat(variables), flatten_dict(nn.get_partition_spec(variables), sep='/')
    assert any(name.endswith('/raw/a') and spec[-1] == 'heads' for name, spec in specs.items())
    tables = [spec for name, spec in specs.items() if name.endswith('/table')]
    assert (None, 'heads') in [tuple(spec)[-2:] for spec in tables]
    assert all(len(spec) == arrays[name].ndim for name, spec in specs.items())
    own = Transformer(cfg, rngs=nnx.Rngs(0))
    found = Model(cfg).apply(of_nnx(own, variables), ids)
    np.testing.assert_allclose(found, own(ids), atol=1e-6)


@pytest.mark.parametrize('spec', ['rope() | t5_rpe()', 'fox()', 'selective_rope()'])
def test_projections_of_ones_own_give_the_result_of_the_layer(spec):
    whole, x = layer(spec), draw()
    variables = nn.unbox(whole.init(jax.random.key(0), x))
    of = variables['params']['projections']
    q, k, v = (jnp.einsum('bld,dnh->blnh', x, of[f'w_{name}']) for name in 'qkv')
    own = pj.linen.EncodedAttention(
        spec, heads=HEADS, head_dim=WIDTH // HEADS, kv_heads=k.shape[2], model_dim=WIDTH
    )
    encoding = {
        name: {'encoding': of['encoding']} for name, of in variables.items() if of.get('encoding')
    }
    out = own.apply(encoding, q, k, v, pj.Tokens.of(length=x.shape[1]), x)
    found = jnp.einsum('blnh,nhd->bld', out, of['w_out'])
    np.testing.assert_allclose(found, whole.apply(variables, x), atol=1e-5)


class Normed(pj.linen.Bridge):
    def build(self, rngs):
        return nnx.BatchNorm(WIDTH, rngs=rngs)


def test_variables_that_a_call_changes_are_returned():
    x = draw()
    variables = Normed().init(jax.random.key(0), x)
    assert float(jnp.abs(variables['batch_stats']['mean']).max()) == 0.0
    _, changed = Normed().apply(variables, x, mutable=['batch_stats'])
    assert float(jnp.abs(changed['batch_stats']['mean']).max()) > 0.0
    with pytest.raises(ValueError, match="Normed: the variables lack 'batch_stats/mean'"):
        Normed().apply({'params': variables['params']}, x)
    with pytest.raises(NotImplementedError, match='Bridge must define build'):
        pj.linen.Bridge().init(jax.random.key(0), x)

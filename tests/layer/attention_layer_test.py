"""The attention layer to take home: every door is called, and any cut of steps equals one call."""

import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj

WIDTH, HEADS, LENGTH = 16, 2, 9
SPECS = (
    'rope()',
    'alibi()',
    'sinusoidal()',
    'learned_absolute(max_len=16)',
    'conflator()',
    'rcmha(max_len=16)',
    'cope()',
    'rope(freqs=dynamic_ntk())',
    'randomized_pe(max_len=32) | rope()',
    'per_head(first=rope(), second=alibi(), heads_of_first=1)',
)
THREE_ROWS = pj.Tokens.of(valid=np.ones((3, LENGTH), bool))
TOLD = dict(
    valid=np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1, 0]], bool),
    segment=np.array([[0, 0, 0, 0, 3, 3, 3, 3, 3], [2, 1, 1, 1, 1, 1, 1, 1, 1]]),
)


def layer(spec, **options):
    return pj.Attention(spec, WIDTH, HEADS, train_len=4, rngs=nnx.Rngs(0), **options)


def draw(length=LENGTH):
    return jax.random.normal(jax.random.key(1), (2, length, WIDTH))


@pytest.mark.full_where(
    condition=lambda spec, cut: cut != (5, 3, 1) and spec not in ('rope()', 'cope()')
)
@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('cut', [(1,) * LENGTH, (5, 3, 1), (LENGTH,)], ids=str)
def test_steps_in_any_cut_equal_one_call(spec, cut):
    attention, x = layer(spec), draw()
    if 'dynamic_ntk' in spec and cut != (LENGTH,):
        pytest.skip('the rule follows the current length, which a whole pass has from the start')
    expected = attention(x)
    step = jax.jit(lambda x, cache: attention.step(x, cache))
    found, cache = [], attention.start(2, LENGTH)
    for part in jnp.split(x, np.cumsum(cut)[:-1], axis=1):
        y, cache = step(part, cache)
        found.append(y)
    assert int(cache.cursor) == LENGTH
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec', ['rope()', 'path(rank=4)', 'path(forget=True)', 'rcmha(max_len=16)', 'cope()', 'tra()']
)
def test_steps_over_packed_documents_equal_one_call(spec):
    """What a document carries, its short convolutions too, does not reach the next one."""
    attention, x = layer(spec), draw()
    tok = pj.Tokens.of(segment=np.array([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7]))
    step = jax.jit(lambda x, cache: attention.step(x, cache))
    found, cache = [], attention.start(2, LENGTH, tok)
    for t in range(LENGTH):
        y, cache = step(x[:, t : t + 1], cache)
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), attention(x, tok), atol=2e-5)


@pytest.mark.full
def test_keys_that_every_token_rewrites_are_appended_one_by_one():
    attention, x = layer('path()'), draw()
    cache, found = attention.start(2, LENGTH), []
    for t in range(LENGTH):
        y, cache = attention.step(x[:, t : t + 1], cache)
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), attention(x), atol=2e-5)


def test_the_pure_function_and_the_linen_module_compute_the_same():
    attention, x = layer('rope() | alibi()'), draw()
    weights = attention.projections
    arrays = (w[...] for w in (weights.w_q, weights.w_k, weights.w_v, weights.w_out))
    np.testing.assert_allclose(
        pj.attention_layer(attention.encoding, x, *arrays), attention(x), atol=1e-6
    )
    twin = pj.linen.Attention('rope() | alibi()', width=WIDTH, heads=HEADS)
    variables = twin.init(jax.random.key(0), x)
    assert twin.apply(variables, x).shape == x.shape
    assert jax.tree.leaves(variables)[0].size


class Own(nnx.Module):
    """The projections of a layer in a form of its own: one table for all three."""

    def __init__(self, of):
        self.table = nnx.Param(jnp.stack([w[...] for w in (of.w_q, of.w_k, of.w_v)]))
        self.back = nnx.Param(of.w_out[...])

    def qkv(self, x):
        return jnp.einsum('bld,cdnh->cblnh', x, self.table[...])

    def output(self, out):
        return jnp.einsum('blnh,nhd->bld', out, self.back[...])


@pytest.mark.parametrize('spec', ['cope()', 'fox()', 'conflator()'])
def test_projections_of_ones_own_take_the_place_of_those_of_the_layer(spec):
    whole, x = layer(spec), draw()
    own = layer(spec, projections=Own(whole.projections))
    nnx.update(own.encoding, nnx.state(whole.encoding))
    np.testing.assert_allclose(own(x), whole(x), atol=1e-5)
    first, cache = own.step(x[:, :5], own.start(2, LENGTH))
    rest, _ = own.step(x[:, 5:], cache)
    found = jnp.concatenate([first, rest], axis=1)
    np.testing.assert_allclose(found, whole(x), atol=2e-5)
    gradient = nnx.grad(lambda module: module(x).sum())(own)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(nnx.state(gradient.projections)))


def test_wrong_projections_are_refused():
    own = Own(layer('rope()').projections)
    with pytest.raises(ValueError, match=r'methods qkv\(x\) and output\(out\); Linear has no qkv'):
        layer('rope()', projections=nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="bias='qkv' is of no use with projections of your own"):
        layer('rope()', projections=own, bias='qkv')
    message = r'Own.qkv: k has shape \(2, 9, 2, 8\), expected \(2, 9, 1, 8\)'
    with pytest.raises(ValueError, match=message):
        layer('rope()', projections=own, kv_heads=1)(draw())
    own.output = lambda out: out
    message = r'Own.output: the result has shape \(2, 9, 2, 8\), expected \(2, 9, 16\)'
    with pytest.raises(ValueError, match=message):
        layer('rope()', projections=own)(draw())
    own.qkv = lambda x: (x, x)
    with pytest.raises(ValueError, match='Own.qkv must return q, k and v, got 2 results'):
        layer('rope()', projections=own)(draw())


def test_gradients_reach_the_projections_and_the_encoding():
    attention, x = layer('kerple()'), draw()
    grads = nnx.grad(lambda attention: (attention(x) ** 2).sum())(attention)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def stepped(spec, counts, capacity, rows=2, **told):
    """Steps of so many tokens, one after the other."""
    attention = layer(spec)
    cache, x = attention.start(2, capacity), jnp.ones((rows, sum(counts), WIDTH))
    for part in jnp.split(x, np.cumsum(counts)[:-1], axis=1):
        _, cache = attention.step(part, cache, **told)


def of_weights(encoding, w_out):
    w = jnp.ones((WIDTH, HEADS, 8))
    pj.attention_layer(encoding, draw(), w, w, w, w_out)


BOTH_WAYS = {
    spec: f'{spec.split("(")[0]} lets tokens see later ones'
    for spec in ('full()', 'prefix(length=3)')
}
# What the message says -> the call.
REFUSED = {
    'width 10 is not a multiple of 4': lambda: pj.Attention('rope()', 10, 4, rngs=nnx.Rngs(0)),
    'heads must be an integer of at least 1, got 0': lambda: pj.Attention(
        'rope()', WIDTH, 0, rngs=nnx.Rngs(0)
    ),
    'kv_heads must be an integer of at least 1, got 0': lambda: layer('rope()', kv_heads=0),
    'head_dim must be an integer of at least 1, got 0': lambda: layer('rope()', head_dim=0),
    'block must be an integer of at least 1, got 2.0': lambda: layer('rope()', block=2.0),
    "bias is 'qk'; .* 'qkv'": lambda: layer('rope()', bias='qk'),
    "implementation is 'flash'": lambda: layer('rope()', implementation='flash'),
    r'x has shape \(2, 16\), expected \[B, L, 16': lambda: layer('rope()')(jnp.ones((2, WIDTH))),
    'tok has 4 tokens, x has 9$': lambda: layer('rope()')(draw(), pj.Tokens.of(length=4)),
    'tok has 3 rows; expected 2, the batch, or 1': lambda: layer('rope()')(draw(), THREE_ROWS),
    'valid has 3 rows; expected 2': lambda: layer('rope()')(draw(), valid=THREE_ROWS.valid),
    'segment has 2 tokens, x has 9$': lambda: layer('rope()')(draw(), segment=[[0, 1]]),
    'tok has 4 tokens, the capacity is 8': lambda: layer('rope()').start(
        1, 8, pj.Tokens.of(length=4)
    ),
    'tok has 3 rows; expected 2, the batch, or 1 for all rows': lambda: layer('rope()').start(
        2, LENGTH, THREE_ROWS
    ),
    'takes rngs as nnx.Rngs, .* got 0$': lambda: pj.Attention('rope()', 8, 2, rngs=cast(Any, 0)),
    'cache must be what start.* returned, .* got tuple': lambda: layer('rope()').step(
        draw(), cast(Any, (1, 2))
    ),
    'segment has rows of different lengths, expected .B, L.': lambda: pj.Tokens.of(
        segment=[[0, 1], [1]]
    ),
    'valid has rows of different lengths': lambda: pj.Tokens.of(valid=[[True], [True, True]]),
    'batch must be an integer of at least 1, got 0': lambda: layer('rope()').start(0, 8),
    'capacity must be an integer .* got 8.0': lambda: layer('rope()').start(1, 8.0),
    'nothing to cache': lambda: layer('reverse_pe() | rope()', causal=False).start(1, 8),
    'full lets tokens see later ones, which': lambda: layer('alibi()', causal=False).start(2, 8),
    **{said: lambda spec=spec: layer(spec).start(2, 8) for spec, said in BOTH_WAYS.items()},
    r'x has 3 rows, the cache was started for 2; start\(3, ...\)': lambda: stepped(
        'rope()', [1], 8, rows=3
    ),
    'valid has 8 tokens, x has 9$': lambda: stepped('rope()', [9], 9, valid=[[True] * 8]),
    '6 new tokens .* 4 of 4 slots free': lambda: stepped('rope()', [6], 4),
    '2 new tokens .* 1 of 4 slots free': lambda: stepped('rope()', [3, 2], 4),
    'rewrites the cached keys of path, .* got 2 at once': lambda: stepped('path()', [2], LENGTH),
    'step got valid, but randomized_pe places all tokens tog': lambda: stepped(
        'randomized_pe(max_len=32) | rope()', [LENGTH], LENGTH, valid=TOLD['valid']
    ),
    r'w_out has shape \(16, 2, 8\), expected \(2, 8, 16\)': lambda: of_weights(
        pj.make('alibi()', heads=HEADS, causal=True), jnp.ones((WIDTH, HEADS, 8))
    ),
    'takes an encoding, got str': lambda: of_weights('alibi()', jnp.ones((HEADS, 8, WIDTH))),
}


@pytest.mark.parametrize('message', REFUSED)
def test_wrong_input_says_what_was_expected(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_mask_is_an_error_that_says_what_it_becomes():
    attention, x, mask = layer('rope()'), draw(), np.tri(LENGTH, dtype=bool)
    weights = attention.projections
    arrays = [w[...] for w in (weights.w_q, weights.w_k, weights.w_v, weights.w_out)]
    calls = (
        lambda: attention(x, mask),
        lambda: attention(x, mask=mask),
        lambda: attention.start(2, LENGTH, jnp.asarray(mask)),
        lambda: pj.attention_layer(attention.encoding, x, *arrays, mask),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r'got an array bool \(9, 9\)') as error:
            call()
        message = str(error.value)
        assert '\n' not in message and 'valid=[B, L]' in message and 'segment=[B, L]' in message
        for spec in message.split("'")[1::2]:
            layer(spec)  # every encoding that is named can be made
    with pytest.raises(ValueError, match='tok must be Tokens, got list'):
        attention(x, mask.tolist())


@pytest.mark.parametrize('names', [('valid',), ('segment',), ('valid', 'segment')], ids=str)
def test_padding_and_documents_are_also_keywords(names):
    told = {name: TOLD[name] for name in names}
    attention, x, tok = layer('rope()'), draw(), pj.Tokens.of(**told)
    np.testing.assert_array_equal(attention(x, **told), attention(x, tok))
    with pytest.raises(ValueError, match=f'got tok and {" and ".join(names)}; .* leave out tok'):
        attention(x, tok, **told)
    with pytest.raises(ValueError, match='the cache was started with tok'):
        attention.step(x, attention.start(2, LENGTH, tok), **told)


@pytest.mark.full_where(condition=lambda spec, cut: spec != 'rope()' or cut[0] != 5)
@pytest.mark.parametrize('spec', [*SPECS[:7], 'path(rank=4)'])
@pytest.mark.parametrize('cut', [(1,) * LENGTH, (5, 3, 1)], ids=str)
def test_steps_that_tell_padding_and_documents_equal_one_call(spec, cut):
    if spec.startswith('path') and cut[0] > 1:
        pytest.skip('its keys are appended one by one')
    attention, x = layer(spec), draw()
    expected = attention(x, **TOLD)
    step = jax.jit(lambda x, cache, told: attention.step(x, cache, **told))
    found, cache, begin = [], attention.start(2, LENGTH), 0
    for count in cut:
        here = slice(begin, begin + count)
        y, cache = step(x[:, here], cache, {name: a[:, here] for name, a in TOLD.items()})
        found.append(y)
        begin += count
    real = TOLD['valid']
    np.testing.assert_allclose(jnp.concatenate(found, 1)[real], expected[real], atol=2e-5)


def test_later_steps_continue_what_earlier_ones_told():
    """A prompt that is padded behind its tokens, with a number of its own for the padding, and two
    tokens of which nothing is told.
    """
    attention, x = layer('rope()'), draw()
    valid, segment = np.ones((2, LENGTH), bool), np.array([[0] * 3 + [1] * 6, [4] * 9])
    valid[0, 5:7] = False
    prompt = np.where(valid, segment, -1)[:, :7]
    step, cache = jax.jit(attention.step), attention.start(2, LENGTH)
    _, cache = step(x[:, :7], cache, valid=valid[:, :7], segment=prompt)
    y, cache = step(x[:, 7:8], cache)
    z, cache = step(x[:, 8:], cache)
    expected = attention(x, valid=valid, segment=segment)[:, 7:]
    np.testing.assert_allclose(jnp.concatenate([y, z], 1), expected, atol=2e-5)
    with pytest.raises(ValueError, match='segment 1 of row 0 is in several pieces'):
        _, cache = attention.step(x[:, :2], attention.start(2, LENGTH), segment=[[1, 2]])
        attention.step(x[:, 2:3], cache, segment=[[1]])


@pytest.mark.parametrize('narrow', ['x', 'layer'])
def test_another_dtype_than_that_of_the_cache_is_an_error(narrow):
    attention, x = layer('rope()'), draw()
    half = x.astype(jnp.bfloat16)
    if narrow == 'layer':
        weights = nnx.state(attention, nnx.Param)
        nnx.update(attention, jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights))
        cache = attention.start(2, LENGTH)  # the default is the dtype of the parameters
    else:
        cache = attention.start(2, LENGTH, dtype=jnp.bfloat16)
        with pytest.raises(ValueError, match=r'x is bfloat16, .* for float32; .*jnp.bfloat16'):
            attention.step(half, attention.start(2, LENGTH))
    with pytest.raises(ValueError, match=r'x is float32, .* for bfloat16; .*dtype=jnp.float32'):
        attention.step(x, cache)
    y, cache = attention.step(half, cache)
    assert y.dtype == cache.layers[0].k.dtype == attention(half).dtype == jnp.bfloat16
    np.testing.assert_allclose(y, attention(half), atol=0.1)


@pytest.mark.full_where(condition=lambda spec, cut: spec != 'rope()' or cut[0] != 4)
@pytest.mark.parametrize('spec', [*SPECS[:7], SPECS[8], 'path(rank=4)'])
@pytest.mark.parametrize('cut', [(1,) * LENGTH, (4, 5), (3, 4, 2)], ids=str)
def test_beyond_the_capacity_of_a_traced_cache_is_nan(spec, cut):
    """And nothing else: tokens that fit are right, also those of a piece that fits in part."""
    if spec.startswith('path') and cut[0] > 1:
        pytest.skip('its keys are appended one by one')
    attention, x, capacity = layer(spec), draw(), 6
    step = jax.jit(lambda x, cache: attention.step(x, cache))
    found, cache = [], attention.start(2, capacity)
    for part in jnp.split(x, np.cumsum(cut)[:-1], axis=1):
        y, cache = step(part, cache)
        found.append(y)
    found = jnp.concatenate(found, axis=1)
    expected = attention(x[:, :capacity])
    np.testing.assert_allclose(found[:, :capacity], expected, atol=2e-5)
    assert jnp.isnan(found[:, capacity:]).all() and int(cache.cursor) == LENGTH
    with pytest.raises(ValueError, match='1 new tokens do not fit the cache, which has 0 of 6'):
        attention.step(x[:, :1], cache)


def test_beyond_the_capacity_in_a_scan_and_under_vmap():
    attention, x = layer('rope()'), draw(6)

    def step(cache, x):
        y, cache = attention.step(x[:, None], cache)
        return cache, y[:, 0]

    _, found = jax.lax.scan(step, attention.start(2, 4), jnp.swapaxes(x, 0, 1))
    np.testing.assert_allclose(jnp.swapaxes(found, 0, 1)[:, :4], attention(x[:, :4]), atol=1e-5)
    assert jnp.isnan(found[4:]).all()
    caches = [attention.step(x[:, :count], attention.start(2, 4))[1] for count in (3, 4)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *caches)
    y = jax.jit(jax.vmap(lambda cache: attention.step(x[:, 3:5], cache)[0]))(stacked)
    np.testing.assert_allclose(y[0, :, 0], attention(x[:, :4])[:, 3], atol=1e-5)
    assert jnp.isnan(y).all(axis=(1, 3)).tolist() == [[False, True], [True, True]]


def test_forward_mode_of_the_dense_layer():
    attention, x = layer('rope()', implementation='dense'), draw()
    _, tangent = jax.jvp(attention, (x,), (x[::-1],))
    step = 1e-2 * x[::-1]
    expected = (attention(x + step) - attention(x - step)) / 2e-2
    np.testing.assert_allclose(tangent, expected, atol=2e-3)


@pytest.mark.parametrize('kind', ['Explicit', 'Auto'])
def test_a_mesh_with_axes_of_other_names(kind):
    attention, x = layer('rope()'), draw()
    mesh = jax.make_mesh(
        (2,), ('rows',), axis_types=(jax.sharding.AxisType[kind],), devices=jax.devices()[:2]
    )
    graphdef, state = nnx.split(attention)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
    with jax.set_mesh(mesh):
        out = run(state, jax.device_put(x, rows))
    np.testing.assert_allclose(out, attention(x), atol=1e-5)


@pytest.mark.full
def test_the_capacity_may_be_symbolic():
    attention, x = layer('rope()'), draw()
    (capacity,) = jax.export.symbolic_shape('n', constraints=['n >= 2'])
    shape = jax.ShapeDtypeStruct((2, capacity, WIDTH), jnp.float32)
    step = lambda x: attention.step(x[:, :2], attention.start(2, x.shape[1]))[0]
    program = jax.export.export(jax.jit(step))(shape)
    np.testing.assert_allclose(program.call(x), attention(x[:, :2]), atol=1e-5)


def exported(spec, *constraints):
    attention = layer(spec)
    rows, length = jax.export.symbolic_shape('b, n', constraints=constraints)
    shape = jax.ShapeDtypeStruct((rows, length, WIDTH), jnp.float32)
    return attention, jax.export.export(jax.jit(lambda x: attention(x)))(shape)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec',
    [
        'learned_absolute(max_len=16)',
        'alibi_pi(mode="dynamic")',
        'cable()',
        'cope(npos=4)',
        'kernelized_rpe(features=4)',
        'path(rank=2, forget=True)',
        'rcmha(max_len=16)',
        'rope_alibi_harmonic()',
        'sigma_gpt(max_len=17)',
    ],
)
def test_lengths_may_be_symbolic(spec):
    attention, program = exported(spec, 'n <= 16')
    x = draw()
    np.testing.assert_allclose(program.call(x), jax.jit(attention)(x), atol=1e-5)


@pytest.mark.parametrize(
    'spec', ['learned_absolute(max_len=16)', 'rcmha(max_len=16)', 'sigma_gpt(max_len=17)']
)
def test_a_table_needs_a_bound_of_a_symbolic_length(spec):
    with pytest.raises(ValueError, match=r"symbolic length n may exceed 16.*\['n <= 16'\]"):
        exported(spec)


@pytest.mark.parametrize('cls', [pj.Attention, type(pj.make('rope()', head_dim=8))])
def test_the_signature_names_the_arguments(cls):
    names = list(inspect.signature(cls).parameters)
    assert names == list(inspect.signature(cls.__init__).parameters)[1:] and 'self' not in names


@pytest.mark.parametrize(
    'call, message',
    [
        (
            lambda: pj.Attention('rope()', 8, 2, is_causal=True, rngs=nnx.Rngs(0)),  # pyright: ignore[reportCallIssue]
            r"Attention\(\) has no argument 'is_causal'; did you mean 'causal'",
        ),
        (
            lambda: pj.Tokens.of(segments=[[0]]),  # pyright: ignore[reportCallIssue]
            r"Tokens.of\(\) has no argument 'segments'; did you mean 'segment'",
        ),
    ],
)
def test_an_unknown_argument_is_an_error_with_the_nearest_one(call, message):
    with pytest.raises(TypeError, match=message):
        call()

"""The attention layer to take home: every door is called, and any cut of steps equals one call."""

import inspect

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
    with pytest.raises(ValueError, match='rewrites the cached keys of path, .* got 2 at once'):
        attention.step(x[:, :2], attention.start(2, LENGTH))


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


def test_gradients_reach_the_projections_and_the_encoding():
    attention, x = layer('kerple()'), draw()
    grads = nnx.grad(lambda attention: (attention(x) ** 2).sum())(attention)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    'call, message',
    [
        (
            lambda: pj.Attention('rope()', 10, 4, rngs=nnx.Rngs(0)),
            'width 10 is not a multiple of 4',
        ),
        (
            lambda: layer('rope()')(jnp.ones((2, WIDTH))),
            r'x has shape \(2, 16\), expected \[B, L, 16',
        ),
        (
            lambda: layer('rope()')(draw(), pj.Tokens.of(length=4)),
            'tok has 4 tokens, x has 9 tokens',
        ),
        (
            lambda: layer('rope()').start(1, 8, pj.Tokens.of(length=4)),
            'tok has 4 tokens, the capacity is 8',
        ),
        (lambda: layer('reverse_pe() | rope()', causal=False).start(1, 8), 'nothing to cache'),
    ],
)
def test_wrong_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_full_cache_is_an_error():
    attention, x = layer('rope()'), draw(6)
    cache = attention.start(2, 4)
    with pytest.raises(ValueError, match='6 new tokens .* 4 of 4 slots free'):
        attention.step(x, cache)
    _, cache = attention.step(x[:, :3], cache)
    with pytest.raises(ValueError, match='2 new tokens .* 1 of 4 slots free'):
        attention.step(x[:, 3:5], cache)


@pytest.mark.parametrize('spec', ['full()', 'prefix(length=3)'])
def test_what_sees_later_tokens_has_no_steps(spec):
    with pytest.raises(ValueError, match=f'{spec.split("(")[0]} lets tokens see later ones'):
        layer(spec).start(2, 8)
    with pytest.raises(ValueError, match='full lets tokens see later ones'):
        layer('alibi()', causal=False).start(2, 8)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(kv_heads=0), 'kv_heads must be an integer of at least 1, got 0'),
        (dict(head_dim=0), 'head_dim must be an integer of at least 1, got 0'),
        (dict(block=2.0), 'block must be an integer of at least 1, got 2.0'),
        (dict(bias='qk'), "bias is 'qk'; .* 'qkv'"),
        (dict(implementation='flash'), "implementation is 'flash'"),
    ],
)
def test_wrong_sizes_and_choices_are_errors_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        layer('rope()', **options)
    with pytest.raises(ValueError, match='heads must be an integer of at least 1, got 0'):
        pj.Attention('rope()', WIDTH, 0, rngs=nnx.Rngs(0))


def test_the_function_checks_the_shapes_of_its_weights():
    x, w = draw(), jnp.ones((WIDTH, HEADS, 8))
    encoding = pj.make('alibi()', heads=HEADS, causal=True)
    with pytest.raises(ValueError, match=r'w_out has shape \(16, 2, 8\), expected \(2, 8, 16\)'):
        pj.attention_layer(encoding, x, w, w, w, w)
    with pytest.raises(ValueError, match='takes an encoding, got str'):
        pj.attention_layer('alibi()', x, w, w, w, w.transpose(1, 2, 0))


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

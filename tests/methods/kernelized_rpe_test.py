"""Kernelized attention: hand-worked numbers, FFT = quadratic, when the FFT form is used, and what
the features estimate.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods import kernelized_rpe as module
from posenc_jax.methods.kernelized_rpe import (
    kernelized_rpe_attention,
    kernelized_rpe_bias,
    kernelized_rpe_directions,
    kernelized_rpe_features,
)
from tests.golden_files import golden
from tests.methods.pairs import draw
from tests.refusals import refused

GOLDEN = golden('kernelized_rpe')
N, K, H, M, L = 4, 2, 8, 12, 45
SPEC = 'kernelized_rpe(features=12, max_distance=9, fft_from=1)'


def make(spec=SPEC, *, causal=True, spread=0.7):
    """An encoding whose table is not at rest."""
    encoding = pj.make(spec, heads=N, kv_heads=K, head_dim=H, model_dim=N * H, causal=causal)
    table = next(part for part in encoding.parts if hasattr(part, 'directions')).table
    table[...] = spread * draw(7, *table.shape)
    return encoding


project = jax.jit(lambda encoding, q, k, v, tok: encoding.project(q, k, v, tok, tok))
applied = functools.partial(pj.attend, applied=pj.TOKEN_STAGE)
attend = jax.jit(applied, static_argnames=('block', 'implementation'))
attention = jax.jit(kernelized_rpe_attention, static_argnames='causal')
features = jax.jit(kernelized_rpe_features)
directions = jax.jit(
    kernelized_rpe_directions, static_argnums=(1, 2, 3), static_argnames='orthogonal'
)


def layer(encoding, length=L, rows=2, **tokens):
    """The arguments of the pair stage."""
    q, k, v = (draw(i, rows, length, heads, H) for i, heads in enumerate((N, K, K)))
    return project(encoding, q, k, v, pj.Tokens.of(length=length, **tokens))


def nothing(v):
    """Stands in for the sweep, to see whether it was chosen."""
    return lambda: jnp.full((*v.shape[:2], N, H), jnp.nan)


@jax.jit
def whole(encoding, arguments):
    return encoding.fast_path(*arguments, causal=False, sweep=nothing(arguments[2]))


def uses_fft(encoding, arguments):
    out = whole(encoding, arguments)
    return out is not None and not np.isnan(out).any()


def oracle(phi_q, phi_k, v, c, causal):
    """In float64: by pairs, and by a circulant matrix of twice the size. All [L, ...] of one head,
    c by j - i + L - 1.
    """
    length = len(v)
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    if causal:
        c = np.where(np.arange(2 * length - 1) < length, c, 0.0)
    w = c[distance + length - 1] * (phi_q @ phi_k.T)
    column = np.concatenate([c[:length][::-1], [0.0], c[length:][::-1]])
    cells = np.einsum('lm,lh->lmh', phi_k, np.concatenate([v, np.ones((length, 1))], 1))
    spectrum = np.fft.rfft(column)[:, None, None] * np.fft.rfft(cells, 2 * length, axis=0)
    sums = np.einsum('lm,lmh->lh', phi_q, np.fft.irfft(spectrum, 2 * length, axis=0)[:length])
    return w @ v / w.sum(1, keepdims=True), sums[:, :-1] / sums[:, -1:]


# The formulas.


def test_golden_features():
    golden = GOLDEN['features']
    x = np.array(golden['x'], np.float32)[None, :, None]
    phi, scale = map(np.asarray, features(x, np.eye(2, dtype=np.float32)[None]))
    np.testing.assert_allclose((phi * np.exp(scale)[..., None])[0, :, 0], golden['phi'], rtol=1e-6)
    pick = lambda a, i: a[:, i : i + 1].swapaxes(1, 2)
    pairs = (pick(a, i) for a in (phi, scale) for i in range(2))
    s = jax.jit(module.kernelized_rpe_logits)(*pairs)
    np.testing.assert_allclose(s[0, 0, 0, 0], golden['log_product'], atol=1e-6)


@pytest.mark.parametrize('implementation', ['dense', None])
@pytest.mark.parametrize('form, causal', [('causal', True), ('full', False)])
def test_golden_attention(form, causal, implementation):
    """Attention by pairs and attention by the FFT both give the numbers of the sheet."""
    golden, spec = GOLDEN['attention'], 'kernelized_rpe(features=2, max_distance=2, fft_from=1)'
    encoding = pj.make(spec, heads=1, kv_heads=1, head_dim=2, causal=causal)
    encoding.parts[0].directions[...] = jnp.eye(2)[None]
    encoding.parts[0].table[...] = jnp.log(jnp.array([golden['weights_of_distance']]))
    q, k, v = (
        np.array(golden[name], np.float32).reshape(1, -1, 1, width) * np.ones((3, 1, 2), 'f')
        for name, width in (('q', 2), ('k', 2), ('v', 1))
    )
    arguments = project(encoding, q, k, v, pj.Tokens.of(length=3))
    out = attend(encoding, *arguments, implementation=implementation)
    np.testing.assert_allclose(out[0, :, 0, 0], golden[form], rtol=2e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(
    'length',
    [1, 2, 45, 300],  # the last is beyond the rows that are done by pairs
)
def test_fft_equals_pairs(length, causal):
    w = directions(jax.random.key(3), K, M, H)
    q, k = (features(draw(i, 2, length, n, H), w)[0] for i, n in ((0, N), (1, K)))
    v, bias = draw(2, 2, length, K, H), 0.7 * draw(4, N, 2 * length - 1)
    out = attention(q, k, v, bias, causal=causal)
    q, k, out = map(np.asarray, (q, k, out))
    for row in range(2):
        for head in range(N):
            exact = lambda a, head: np.asarray(a[row, :, head], np.float64)
            own = exact(q, head), exact(k, head // 2), exact(v, head // 2)
            pairs, fft = oracle(*own, np.exp(np.asarray(bias[head], np.float64)), causal)
            np.testing.assert_allclose(fft, pairs, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(out[row, :, head], pairs, atol=1e-5)


@pytest.mark.parametrize('implementation', ['dense', None])
def test_a_large_bias_at_distance_zero_returns_the_value(implementation):
    encoding = make()
    encoding.parts[0].table[...] = encoding.parts[0].table[...].at[:, 9].set(40.0)
    arguments = layer(encoding)
    out = attend(encoding, *arguments, implementation=implementation)
    np.testing.assert_allclose(out, np.repeat(arguments[2], N // K, axis=2), atol=1e-5)


def test_farther_distances_share_the_last_entry():
    bias = jax.jit(kernelized_rpe_bias)(draw(0, N, 7), np.array([[10]]), np.arange(21)[None])
    b = np.asarray(bias)[0, :, 0]
    assert (b[:, :8] == b[:, :1]).all() and (b[:, 13:] == b[:, 20:]).all()
    assert len(np.unique(b[0])) == 7


# What the features estimate.


@pytest.mark.parametrize('orthogonal', [True, False])
def test_products_of_features_estimate_the_exponential(orthogonal):
    golden = GOLDEN['expectation']
    w = directions(jax.random.key(0), 1, 2**16, H, orthogonal=orthogonal)
    cosine = np.array(golden['angle_cosine'])
    a = np.eye(H, dtype=np.float32)[:1]
    b = np.zeros((3, H), np.float32)
    b[:, 0], b[:, 1] = cosine, np.sqrt(1 - cosine**2)
    phi, scale = map(np.asarray, features(np.concatenate([a, 7.0 * b])[None, :, None], w))
    phi = (phi * np.exp(scale)[..., None])[0, :, 0]
    np.testing.assert_allclose(phi[1:] @ phi[0], golden['exp'], rtol=0.04)


def test_orthogonal_directions_estimate_with_less_variance():
    x = np.eye(H, dtype=np.float32)[:2][None, :, None]

    def spread(orthogonal):
        w = directions(jax.random.key(1), 3000, H, H, orthogonal=orthogonal)
        phi, scale = map(np.asarray, features(np.tile(x, (1, 1, 3000, 1)), w))
        return np.std((phi[0, 0] * phi[0, 1]).sum(-1) * np.exp(scale[0].sum(0)))

    assert spread(True) < 0.9 * spread(False)


def test_without_bias_and_with_many_features_it_is_softmax_of_cosines():
    encoding = make('kernelized_rpe(features=65536, max_distance=2)', spread=0.0)
    q, k, v, tq, tk = layer(encoding, 6, 1)
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    expected = jax.jit(functools.partial(jax.nn.dot_product_attention, scale=1.0, is_causal=True))(
        *(unit(draw(i, 1, 6, heads, H)) for i, heads in enumerate((N, K))), v
    )
    np.testing.assert_allclose(attend(encoding, q, k, v, tq, tk), expected, atol=0.04)


# When the whole sequence is evaluated by FFT.


@pytest.mark.parametrize('padded, causal', [('right', False), ('none', True), ('left', True)])
@pytest.mark.full_but_one
def test_whole_equals_the_sweep_and_so_do_gradients(padded, causal):
    encoding, index = make(causal=causal), np.arange(L)
    valid = {'none': None, 'right': index < [[L], [30]], 'left': index >= [[0], [7]]}[padded]
    assert uses_fft(encoding, layer(encoding, valid=valid))
    real = jnp.ones((1, L, 1, 1)) if valid is None else jnp.asarray(valid)[..., None, None]
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)

    def output(implementation, params, q, k, v):
        encoding, tok = nnx.merge(graphdef, params, rest), pj.Tokens.of(length=L, valid=valid)
        arguments = encoding.project(q, k, v, tok, tok)
        return real * applied(encoding, *arguments, implementation=implementation)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, *inputs):
        out, pull = jax.vjp(functools.partial(output, implementation), *inputs)
        return out, pull(draw(9, *out.shape))

    inputs = params, *layer(encoding, valid=valid)[:3]
    found, dense = (jax.tree.leaves(run(how, *inputs)) for how in (None, 'dense'))
    for ours, expected in zip(found, dense, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


def test_low_precision_values_come_back_as_they_came():
    encoding = make()
    q, k, v, tq, tk = layer(encoding)
    out, exact = (attend(encoding, q, k, a, tq, tk) for a in (v.astype(jnp.bfloat16), v))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.02)


def test_shifted_positions_keep_the_fft():
    encoding = make()
    assert uses_fft(encoding, layer(encoding, positions=np.arange(L)[None] + 1000))


def is_as_dense(encoding, arguments):
    dense = attend(encoding, *arguments, implementation='dense')
    np.testing.assert_array_equal(attend(encoding, *arguments), dense)


def test_positions_that_jump_are_swept():
    encoding = make()
    arguments = layer(encoding, positions=np.arange(L)[None] + (np.arange(L) >= 20))
    assert not uses_fft(encoding, arguments) and whole(encoding, arguments) is not None
    is_as_dense(encoding, arguments)


def test_other_tokens_than_the_keys_own_are_swept():
    encoding = make()
    q, k, v, tq, tk = layer(encoding)
    assert not uses_fft(encoding, (q, k, v, dataclasses.replace(tq, pos=tq.pos + 1), tk))
    assert not uses_fft(encoding, (q, k, v, dataclasses.replace(tq, index=tq.index + 1), tk))
    assert whole(encoding, (q[:, :9], k, v, tq.slice(0, 9), tk)) is None


def test_packed_documents_are_swept():
    encoding = make()
    assert whole(encoding, layer(encoding, segment=np.arange(L)[None] // 30)) is None


@pytest.mark.parametrize(
    'other', ['alibi()', 'window(size=4)', 'shaw(max_distance=2)', 'cope(npos=4)', 't5_rpe()']
)
def test_beside_parts_that_open_the_pair_stage_it_is_swept(other):
    encoding = make(f'{other} | {SPEC}')
    assert whole(encoding, layer(encoding)) is None


def test_beside_parts_that_do_not_it_is_not():
    encoding = make(f'{SPEC} | nope() | learned_absolute(max_len=64)')
    assert uses_fft(encoding, layer(encoding))


def test_biases_too_far_apart_for_a_transform_are_swept():
    """The first query sees nothing but its own key, whose weight is e^-30 of what others have."""
    encoding = make(causal=False, spread=0.0)
    encoding.parts[0].table[...] = jnp.where(jnp.arange(19) > 5, -30.0, 0.0) * jnp.ones((N, 1))
    arguments = layer(encoding, 64)
    assert not uses_fft(encoding, arguments)
    is_as_dense(encoding, arguments)


def test_short_sequences_and_tiles_that_are_asked_for_are_swept(monkeypatch):
    encoding = make('kernelized_rpe(features=12, max_distance=9)')
    assert whole(encoding, layer(encoding)) is None and encoding.opens('fast_path')
    encoding = make()
    monkeypatch.setattr(module.KernelizedRPE, 'fast_path', None)
    for options in (dict(block=8), dict(implementation='blocked'), dict(implementation='dense')):
        fresh = jax.jit(functools.partial(applied, **options))  # `attend` may be traced already
        assert np.isfinite(fresh(encoding, *layer(encoding))).all()


@pytest.mark.full
def test_memory_of_the_fft_form_is_linear():
    encoding = make()

    def memory(length):
        q, k, v = (jax.ShapeDtypeStruct((1, length, heads, H), jnp.float32) for heads in (N, K, K))
        tok = pj.Tokens.of(length=length)
        loss = lambda q, k, v: applied(encoding, *encoding.project(q, k, v, tok, tok)).sum()
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(4096) < 2.5 * memory(2048)


ONE = jnp.ones((1, 3, 2, 4))
test_wrong_calls = refused() | {
    'one bias per whole distance, got positions of float32': lambda: applied(
        make(), *layer(make(), positions=np.arange(L)[None] / 2), implementation='dense'
    ),
    r'bias must be \(2, 5\), got \(2, 3\)': lambda: kernelized_rpe_attention(
        ONE, ONE, ONE, jnp.zeros((2, 3))
    ),
    'shapes do not fit': lambda: kernelized_rpe_attention(ONE, ONE[:, :2], ONE, jnp.zeros((2, 5))),
}

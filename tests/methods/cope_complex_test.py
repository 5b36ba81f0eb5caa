"""Complex positional encoding: logits by hand, all modes against complex arithmetic in float64,
tiles, decoding, devices, and a model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.methods.cope_complex import (
    complex_logits,
    complex_products,
    cope_complex_sines,
    paired,
    parted,
)
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of
from tests.methods.pairs import draw
from tests.refusals import refused

GOLDEN = golden('cope_complex')['values']
B, L, N, K, H, D = 2, 9, 4, 2, 3, 12
SPECS = {
    'magnitude': 'cope_complex()',
    'phase': 'cope_complex("phase")',
    'real': 'cope_complex("real", gamma=0.5)',
    'hybrid': 'cope_complex("hybrid", alpha=0.3, merge="concat")',
    'apatt': 'cope_complex("apatt", merge="concat")',
    'riatt': 'cope_complex("riatt")',
    'learned': 'cope_complex(position="learned", max_len=16)',
}
each = pytest.mark.parametrize('name', SPECS)


def make_layer(spec, **options):
    sizes = dict(width=D, heads=N, kv_heads=K, head_dim=H)
    layer = pj.Attention(spec, **sizes, rngs=nnx.Rngs(0), **options)
    part = layer.encoding.parts[0]
    for number, name in enumerate(('w_merge', 'table')):
        if getattr(part, name, None) is not None:
            parameter = getattr(part, name)
            parameter[...] = draw(number, *parameter.shape)
    return layer


def reference(layer, x):
    """Causal attention with complex numbers, one query at a time."""
    part, weights = layer.encoding.parts[0], layer.projections
    wide = lambda a: np.asarray(a[...], np.float64)
    t = np.arange(x.shape[1])
    if part.table is not None:
        s = wide(part.table)[t]
    else:
        s = np.repeat(np.sin(t[:, None] * 10000.0 ** (-2 * np.arange(D // 2) / D)), 2, axis=1)
    z = np.asarray(x, np.float64) + 1j * part.gamma * s
    q, k, v = (
        np.einsum('bld,dnh->blnh', z, wide(r) + 1j * wide(i))
        for r, i in zip((weights.w_q, weights.w_k, weights.w_v), (part.w_q, part.w_k, part.w_v))
    )
    k, v = (np.repeat(a, N // K, axis=2) for a in (k, v))
    softmax = lambda a: np.exp(a - a.max()) / np.exp(a - a.max()).sum()
    out = np.zeros((*x.shape[:2], N, H), complex)
    for b, i, n in np.ndindex(*x.shape[:2], N):
        dots = (q[b, i, n] * k[b, : i + 1, n].conj()).sum(-1)
        size, scale = np.abs(dots), H**-0.5
        logits = {
            'real': dots.real,
            'phase': dots.real / size,
            'hybrid': size + part.alpha * dots.real / size,
        }.get(part.mode, size)
        w = softmax(logits * scale)
        if part.mode == 'apatt':
            w = w * dots / size
        if part.mode == 'riatt':
            w = softmax(dots.real * scale) + 1j * softmax(dots.imag * scale)
        out[b, i, n] = w @ v[b, : i + 1, n]
    if part.w_merge is None:
        merged = out.real
    else:
        both = np.concatenate([out.real, out.imag], axis=-1)
        merged = np.einsum('btnc,nch->btnh', both, wide(part.w_merge))
    return np.einsum('btnh,nhd->btd', merged, wide(weights.w_out))


def products():
    q, k = (tuple(jnp.full((1, 1, 1, 1), x) for x in GOLDEN[name]) for name in 'qk')
    return complex_products(q, k)


def golden_logits(mode):
    return lambda golden: complex_logits(*products(), 1, mode, golden['alpha']).item()


test_golden = golden_suite('cope_complex', rtol=1e-6) | {
    'real': (lambda: products()[0].item(), {}),
    'imaginary': (lambda: products()[1].item(), {}),
    **{mode: golden_logits(mode) for mode in ('magnitude', 'phase', 'hybrid', 'hybrid_norm')},
    'sines': (lambda: cope_complex_sines(jnp.array([[0, 1]]), 4)[0, 1], {'atol': 1e-6}),
}


def test_a_position_of_zero_and_real_logits_change_nothing():
    assert complex_logits(*products(), 1, 'real', 0.25).item() == GOLDEN['real']
    assert not cope_complex_sines(jnp.array([[0, 1]]), 4)[0, 0].any()


def test_the_width_of_phases():
    real, imaginary = (5 * draw(seed, 1, 2, 7, 7) for seed in range(2))
    assert np.abs(complex_logits(real, imaginary, 64, 'phase')).max() <= 1 / 8
    extreme = complex_logits(jnp.array([[[[1.0, -1.0]]]]), jnp.zeros((1, 1, 1, 2)), 64, 'phase')
    w = jax.nn.softmax(extreme)[0, 0, 0]
    np.testing.assert_allclose(w[0] / w[1], GOLDEN['largest_ratio'], rtol=1e-5)


@pytest.mark.full
@each
def test_a_layer_by_complex_arithmetic(name):
    layer, x = make_layer(SPECS[name]), draw(5, B, L, D)
    np.testing.assert_allclose(layer(x), reference(layer, x), atol=2e-5)


# Those that add parameters or sum with other weights; others differ from 'hybrid' in each logit.
@pytest.mark.full
@pytest.mark.parametrize('name', ['hybrid', 'apatt', 'riatt', 'learned'])
def test_tiles_and_decoding_equal_the_whole(name):
    whole, tiled = make_layer(SPECS[name], implementation='dense'), make_layer(SPECS[name], block=4)
    x = draw(5, B, L, D)
    loss = lambda layer, x: (((y := layer(x)) ** 2).sum(), y)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    by_tiles, by_whole = both(tiled, x), both(whole, x)
    for a, b in zip(jax.tree.leaves(by_tiles), jax.tree.leaves(by_whole)):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(b).max())))
    step, cache = jax.jit(lambda x, cache: whole.step(x, cache)), whole.start(B, capacity=L)
    first, cache = step(x[:, :5], cache)
    rest = []
    for t in range(5, L):
        y, cache = step(x[:, t : t + 1], cache)
        rest.append(y)
    np.testing.assert_allclose(jnp.concatenate([first, *rest], axis=1), by_whole[0][1], atol=2e-5)
    assert cache.layers[0].k.shape == (B, 2 * K, L, H)  # both parts


@pytest.mark.full
@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
@pytest.mark.parametrize('name', ['apatt', 'riatt'])
def test_devices_hold_both_parts_of_their_heads(name):
    layer, x = make_layer(SPECS[name]), draw(5, B, 8, D)
    expected = layer(x)
    with jax.set_mesh(make_mesh(data=2, tensor=2, sequence=2)):
        found = jax.jit(lambda layer, x: layer(x))(layer, x)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_real_logits_are_those_of_joined_vectors():
    q_re, q_im, k_re, k_im = (draw(seed, 1, 2, 5, 4) for seed in range(4))
    joined = lambda a, b: np.concatenate([a, b], axis=-1)
    direct = np.einsum('bnth,bnsh->bnts', joined(q_re, q_im), joined(k_re, k_im)) / 2
    found = complex_logits(*complex_products((q_re, q_im), (k_re, k_im)), 4, 'real')
    np.testing.assert_allclose(found, direct, atol=1e-5)


def test_the_largest_product_of_a_row_is_that_of_the_keys_seen():
    real, imaginary = (draw(seed, 1, 1, 6, 6) for seed in range(2))
    seen = np.tril(np.ones((6, 6), bool))[None, None]
    found = complex_logits(real, imaginary, 1, 'hybrid_norm', 0.0, jnp.asarray(seen))
    size = np.hypot(real, imaginary)
    expected = size / np.where(seen, size, 0).max(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    later = complex_logits(
        jnp.asarray(real).at[..., 5].set(99.0), imaginary, 1, 'hybrid_norm', 0.0, seen
    )
    np.testing.assert_array_equal(later[..., :5, :5], found[..., :5, :5])


def test_products_of_zero_have_finite_derivatives():
    zero = jnp.zeros((1, 1, 1, 2))
    for mode in ('magnitude', 'phase', 'hybrid', 'hybrid_norm'):
        slopes = jax.grad(lambda r, i: complex_logits(r, i, 4, mode).sum(), (0, 1))(zero, zero)
        assert np.isfinite(slopes).all(), mode


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_parts_are_paired_and_parted(groups):
    re, im = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5)
    for found, part in zip(parted(paired(re, im, groups, 2), groups, 2), (re, im)):
        np.testing.assert_array_equal(found, part)


@pytest.mark.full
def test_a_model_with_it_in_the_first_layer_alone():
    model = model_of(
        'nope()', layers=3, pattern=('cope_complex(merge="concat")', 'nope()', 'nope()')
    )
    out = model(jnp.array([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]]))
    assert np.abs(out[0, -1] - out[1, -1]).max() > 1e-4  # the order of the first two matters
    kinds = [type(model.encoding(*pair).parts[0]).__name__ for pair in model.layers()]
    assert kinds == ['CopeComplex', 'NoPE', 'NoPE']


test_wrong_calls = refused() | {
    r'position 4 is not in 0 \.\. 3; use a larger table or': lambda: make_layer(
        'cope_complex(position="learned", max_len=4)'
    )(draw(0, 1, 5, D)),
    r'needs positions \[B, L\], got \(1, 2, 2\)': lambda: make_layer('cope_complex()')(
        draw(0, 1, 2, D), pj.Tokens.of(positions=[[[0, 1], [1, 1]]])
    ),
    'the width is even, got 5': lambda: cope_complex_sines(jnp.zeros((1, 1)), 5),
}

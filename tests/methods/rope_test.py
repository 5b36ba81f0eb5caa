"""RoPE: the sheet's numbers, layouts, partial widths, precision, and that only differences of
positions matter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.rope import Rotary, rope, rope_frequencies, rotate
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('rope')['values']
TO_HALF = lambda width: np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])


def draw(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_golden(layout):
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(
        rope(x, jnp.asarray([[3]]), layout=layout).ravel(), GOLDEN[layout], atol=2e-6
    )


def test_all_ones_logit_by_distance():
    ones = jnp.ones((1, 1, 1, 64))
    logit = [(rope(ones, jnp.asarray([[s]])) * ones).sum() / 64 for s in GOLDEN['ones_distance']]
    np.testing.assert_allclose(logit, GOLDEN['ones_logit'], atol=6e-5)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_against_complex_multiplication_in_float64(layout):
    x, pos = draw(0, 2, 5, 3, 8), np.asarray([[0, 1, 7, 1000, 65536], [3, 3, 2, 1, 0]])
    wide = np.asarray(x, np.float64)
    a, b = (wide[..., :4], wide[..., 4:]) if layout == 'half' else (wide[..., ::2], wide[..., 1::2])
    turned = (a + 1j * b) * np.exp(1j * pos[:, :, None, None] * rope_frequencies(8, 10000.0))
    expected = np.concatenate([turned.real, turned.imag], -1)
    out = np.asarray(rope(x, jnp.asarray(pos), layout=layout))
    np.testing.assert_allclose(
        out if layout == 'half' else out[..., TO_HALF(8)], expected, atol=2e-6
    )


def test_layouts_agree_after_permuting_features():
    q, k, tok, order = draw(0, 1, 6, 2, 8), draw(1, 1, 6, 2, 8), pj.Tokens.of(length=6), TO_HALF(8)
    project = lambda layout, *a: pj.make(f'rope(layout="{layout}")', head_dim=8).project(
        *a, a[1], tok, tok
    )[:2]
    logits = lambda q, k: jnp.einsum('btnh,bsnh->bnts', q, k)
    np.testing.assert_allclose(
        logits(*project('interleaved', q, k)),
        logits(*project('half', q[..., order], k[..., order])),
        atol=1e-5,
    )


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_partial_rotates_leading_features_with_their_own_exponent(layout):
    x, pos = draw(0, 1, 4, 2, 12), jnp.arange(4)[None]
    out = pj.make(f'rope(partial=0.5, layout="{layout}")', head_dim=12).rotate(x, pos)
    np.testing.assert_array_equal(out[..., 6:], x[..., 6:])
    np.testing.assert_allclose(out[..., :6], rope(x[..., :6], pos, layout=layout), atol=1e-6)


@pytest.mark.parametrize('offset', [1, 1000, 10**6, 2**31 - 100])
def test_a_constant_added_to_all_positions_changes_nothing(offset):
    q, k, v, encoding = (
        draw(0, 1, 9, 2, 64),
        draw(1, 1, 9, 2, 64),
        draw(2, 1, 9, 2, 64),
        pj.make('rope()', head_dim=64, causal=True),
    )

    def out(offset):
        tok = pj.Tokens.of(positions=np.arange(9)[None] + offset)
        return jax.jit(
            lambda tok: pj.attend(
                encoding, *encoding.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE
            )
        )(tok)

    np.testing.assert_allclose(out(offset), out(0), atol=5e-6)


def test_norms_of_planes_are_kept_and_values_untouched():
    q, k, v, tok = (
        draw(0, 1, 5, 4, 8),
        draw(1, 1, 5, 2, 8),
        draw(2, 1, 5, 2, 8),
        pj.Tokens.of(length=5),
    )
    q2, k2, v2, _, _ = pj.make('rope()', head_dim=8).project(q, k, v, tok, tok)
    norms = lambda x: x[..., :4] ** 2 + x[..., 4:] ** 2
    np.testing.assert_allclose(norms(q2), norms(q), rtol=1e-5)
    np.testing.assert_allclose(norms(k2), norms(k), rtol=1e-5)
    assert v2 is v


@pytest.mark.full
def test_bfloat16_activations_have_float32_phases():
    x, pos = draw(0, 1, 1, 1, 64, dtype=jnp.bfloat16), jnp.asarray([[4095]])
    out = pj.make('rope()', head_dim=64).rotate(x, pos)
    assert out.dtype == jnp.bfloat16
    exact = rope(x.astype(jnp.float32), pos)
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_temperature_multiplies_both_sides():
    x = draw(0, 1, 3, 2, 8)
    np.testing.assert_allclose(rotate(x, jnp.zeros((1, 3, 1, 4)), scale=1.5), 1.5 * x, rtol=1e-6)


@pytest.mark.full
def test_gradients_are_the_inverse_rotation_and_reach_the_angles():
    x, g, pos = draw(0, 1, 3, 2, 8), draw(1, 1, 3, 2, 8), jnp.arange(3)[None]
    _, pull = jax.vjp(lambda x: rope(x, pos), x)
    np.testing.assert_allclose(pull(g)[0], rope(g, -pos), atol=1e-6)
    angles = draw(2, 1, 3, 1, 4)
    f = lambda a: (rotate(x, a) * g).sum()
    step = draw(3, 1, 3, 1, 4) * 1e-2
    np.testing.assert_allclose(
        (jax.grad(f)(angles) * step).sum(), (f(angles + step) - f(angles - step)) / 2, rtol=1e-3
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', ['rope()', 'rope(layout="interleaved")', 'rope(partial=0.5)'])
def test_jit_and_vmap(spec):
    x, pos, part = draw(0, 3, 2, 5, 2, 8), jnp.arange(10).reshape(2, 5), pj.make(spec, head_dim=8)
    mapped = jax.jit(jax.vmap(part.rotate, (0, None)))(x, pos)
    np.testing.assert_allclose(mapped, jnp.stack([part.rotate(a, pos) for a in x]), atol=1e-6)


def test_left_padding_and_packing():
    q, k, v, encoding = (
        draw(0, 1, 6, 2, 8),
        draw(1, 1, 6, 2, 8),
        draw(2, 1, 6, 2, 8),
        pj.make('rope()', head_dim=8, causal=True),
    )
    run = jax.jit(
        lambda tok, *a: pj.attend(encoding, *encoding.project(*a, tok, tok), applied=pj.TOKEN_STAGE)
    )
    alone = run(pj.Tokens.of(length=6), q, k, v)
    pad = lambda a: jnp.pad(a, ((0, 0), (3, 0), (0, 0), (0, 0)), constant_values=7.0)
    padded = run(pj.Tokens.of(valid=np.arange(9)[None] >= 3), pad(q), pad(k), pad(v))
    np.testing.assert_allclose(padded[:, 3:], alone, atol=1e-6)
    twice = lambda a: jnp.concatenate([a, a], 1)
    packed = run(pj.Tokens.of(segment=np.repeat([[4, 9]], 6, axis=1)), twice(q), twice(k), twice(v))
    np.testing.assert_allclose(packed, twice(alone), atol=1e-6)


@pytest.mark.parametrize(
    'spec, width, message',
    [
        ('rope()', 7, 'head_dim=7'),
        ('rope(partial=0.5)', 10, '5 of head_dim=10'),
        ('rope(partial=0.0)', 8, 'partial must be positive and at most 1, got 0.0'),
        ('rope(base=0.5)', 8, 'base of rotary frequencies, must be at least 1, got 0.5'),
        ('rope(base=-1.0)', 8, 'at least 1, got -1.0'),
        ('rope(layout="hlaf")', 8, "one of 'half'"),
        ('rope(freqs=yarm(factor=4.0))', 8, 'yarn'),
        ('rope(freqs=alibi())', 8, 'not as frequencies'),
    ],
)
def test_errors(spec, width, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=width, train_len=64, heads=2)


def test_errors_of_arrays():
    part = Rotary(head_dim=8)
    for base in (float('inf'), float('nan'), 1e39):  # a spec string holds no such number
        with pytest.raises(
            ValueError, match=r'the base of rotary frequencies,? must be .*, got (inf|nan|1e\+39)'
        ):
            Rotary(base, head_dim=8)
    with pytest.raises(ValueError, match='head_dim=8.*width 6'):
        part.rotate(jnp.ones((1, 2, 1, 6)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match='2 components'):
        part.rotate(jnp.ones((1, 2, 1, 8)), jnp.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match='10 features.*only 8'):
        rotate(jnp.ones((1, 8)), jnp.ones((1, 5)))
    with pytest.raises(ValueError, match="did you mean 'half'"):
        rotate(jnp.ones((1, 8)), jnp.ones((1, 4)), layout='hal')

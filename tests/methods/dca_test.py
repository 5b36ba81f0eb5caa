"""DCA: the distances of the sheet, the defining dense form against tiles, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.dca import dca_distance
from posenc_jax.methods.rope import rope
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.by_distance import ROTARY, WIDTH, qkv, rotary_logits, run, softmax

GOLDEN = golden('dca')['values']
CHUNK, LOCAL, CLIP = GOLDEN['chunk'], GOLDEN['local'], GOLDEN['clip']


def encoding(chunk=CHUNK, local=LOCAL, **options):
    more = ''.join(f', {name}={value}' for name, value in options.items())
    return pj.make(
        f'dca(encoding=rope(), chunk={chunk}, local={local}{more})',
        head_dim=WIDTH,
        train_len=64,
        causal=True,
    )


def distances(length, chunk=CHUNK, clip=CLIP):
    pos = jnp.arange(length)[None]
    return np.asarray(dca_distance(pos, pos, chunk, clip))[0]


@jax.jit
def defined(q, k, v, distance):
    """Softmax attention with logits R(D_ij) q_i . k_j / sqrt(H), causal, pair by pair in one dense
    array.
    """
    length = q.shape[1]
    turned = rope(jnp.repeat(q, length, axis=1), distance.reshape(1, -1)).reshape(
        1, length, length, 2, WIDTH
    )
    s = jnp.einsum('btsnh,bsnh->bnts', turned, jnp.repeat(k, 2 // k.shape[2], axis=2)) / WIDTH**0.5
    s = jnp.where(np.tril(np.ones((length, length), bool)), s, -jnp.inf)
    return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(s), jnp.repeat(v, 2 // v.shape[2], axis=2))


@pytest.mark.parametrize('row', GOLDEN['rows'])
def test_golden_rows(row):
    assert distances(12)[int(row), : int(row) + 1].tolist() == GOLDEN['rows'][row]


@pytest.mark.parametrize('chunk, local', [(4, 2), (5, 5), (3, 0), (1, 1)])
def test_distances_are_exact_nearby_and_never_above_the_clip(chunk, local):
    d = distances(40, chunk, chunk + local)
    gap = np.subtract.outer(np.arange(40), np.arange(40))
    near, past = (gap >= 0) & (gap <= local), gap >= 0
    np.testing.assert_array_equal(d[near], gap[near])
    assert d[past].min() == 0 and d[past].max() == chunk + local


def test_attention_has_the_distances_of_the_table():
    arrays, tok = qkv(20), pj.Tokens.of(length=20)
    expected = defined(*arrays, distances(20))
    np.testing.assert_allclose(run(encoding(), tok, *arrays), expected, atol=2e-6)


@pytest.mark.full
def test_tiles_and_their_gradients_equal_the_defining_dense_form_and_its_gradients():
    arrays, tok, distance = qkv(19), pj.Tokens.of(length=19), distances(19)
    weights = jax.random.normal(jax.random.key(9), (1, 19, 2, WIDTH))
    weighted = lambda out: ((out * weights).sum(), out)
    gradients = lambda attention: jax.jit(
        jax.grad(lambda *a: weighted(attention(*a)), (0, 1, 2), has_aux=True)
    )(*arrays)
    slopes, expected = gradients(lambda *a: defined(*a, distance))
    for block in (None, (5, 3)):
        ours, out = gradients(lambda *a: run(encoding(), tok, *a, block=block))
        np.testing.assert_allclose(out, expected, atol=2e-6)
        for a, b in zip(ours, slopes):
            np.testing.assert_allclose(a, b, atol=5e-6)


def test_within_one_chunk_it_is_rope():
    arrays, tok = qkv(10), pj.Tokens.of(length=10)
    plain = pj.make('rope()', head_dim=WIDTH, causal=True)
    np.testing.assert_allclose(
        run(encoding(chunk=10), tok, *arrays), run(plain, tok, *arrays), atol=1e-6
    )


def test_attention_factor_scales_logits_by_its_square():
    q, k, v = qkv(12)
    tok = pj.Tokens.of(length=12)
    np.testing.assert_allclose(
        run(encoding(attention_factor=1.5), tok, q, k, v),
        run(encoding(), tok, 2.25 * q, k, v),
        atol=2e-6,
    )


def test_defaults_follow_the_released_code():
    part = pj.make('dca(encoding=rope())', head_dim=8, train_len=4096)
    assert (part.clip, part.chunk) == (3072, 2560)


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    part = pj.make(
        f'dca(encoding={ROTARY}, chunk=4, local=2)', head_dim=WIDTH, train_len=64, causal=True
    )
    q, k, v = qkv(19)
    expected = softmax(rotary_logits(q, k, distances(19, 4, 6)), v)
    np.testing.assert_allclose(
        run(part, pj.Tokens.of(length=19), q, k, v, block=(5, 4)), expected, atol=4e-6
    )


@pytest.mark.parametrize(
    'spec, message',
    [
        ('dca(encoding=alibi())', 'rotary encoding, got alibi'),
        ('dca(encoding=rope() | alibi())', 'chain other encodings beside it'),
        ('dca(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        (
            'dca(encoding=rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0)))',
            'use start=0',
        ),
        ('dca(encoding=rope(), local=100)', 'got chunk=-52 .*chunk=None, local=100, train_len=64'),
        ('dca(encoding=rope(), chunk=0)', 'chunk=0'),
        ('dca(encoding=rope(), chunk=2.5)', 'chunk=2.5'),
        ('dca(encoding=rope(), chunk=4, local=5)', 'between 0 and chunk=4, got 5'),
        ('dca()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)

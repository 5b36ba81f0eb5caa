"""DCA: the distances of the sheet, the defining dense form against tiles, limits."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.dca import dca_distance
from tests.golden_files import golden, golden_suite
from tests.methods.by_distance import ROTARY, WIDTH, defined, qkv, rotary_logits, run, softmax

GOLDEN = golden('dca')['values']
CHUNK, LOCAL, CLIP = GOLDEN['chunk'], GOLDEN['local'], GOLDEN['clip']


def encoding(chunk=CHUNK, local=LOCAL, inner='rope()', more=''):
    spec = f'dca(encoding={inner}, chunk={chunk}, local={local}{more})'
    return pj.make(spec, head_dim=WIDTH, train_len=64, causal=True)


def distances(length, chunk=CHUNK, clip=CLIP):
    pos = jnp.arange(length)[None]
    return np.asarray(dca_distance(pos, pos, chunk, clip))[0]


test_golden = golden_suite('dca') | {
    'rows.*': lambda _, row: distances(12)[int(row), : int(row) + 1]
}


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
    for block in (None, (5, 3)):
        out = run(encoding(), tok, *arrays, block=block)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def test_attention_factor_scales_logits_by_its_square():
    (q, k, v), tok = qkv(12), pj.Tokens.of(length=12)
    scaled = run(encoding(more=', attention_factor=1.5'), tok, q, k, v)
    np.testing.assert_allclose(scaled, run(encoding(), tok, 2.25 * q, k, v), atol=2e-6)


def test_defaults_follow_the_released_code():
    part = pj.make('dca(encoding=rope())', head_dim=8, train_len=4096)
    assert (part.clip, part.chunk) == (3072, 2560)


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    q, k, v = qkv(19)
    out = run(encoding(4, 2, ROTARY), pj.Tokens.of(length=19), q, k, v, block=(5, 4))
    expected = softmax(rotary_logits(q, k, distances(19, 4, 6)), v)
    np.testing.assert_allclose(out, expected, atol=4e-6)

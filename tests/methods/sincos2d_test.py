"""2-D sinusoidal positions: both conventions by hand, norms, extra tokens, sizes, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.methods.sincos2d import sincos2d_detr, sincos2d_table
from tests.golden_files import golden_suite
from tests.methods.models import model_of
from tests.methods.pairs import grid
from tests.refusals import refused


@functools.partial(jax.jit, static_argnums=2)
def table(part, tok, width):
    return part.table(tok, width)


def detr(case):
    position, size = jnp.array([[case['position']]]), tuple(case['size'])
    return sincos2d_detr(position, 8, size, case['base'])[0, 0]


test_golden = golden_suite('sincos2d', atol=5e-5) | {
    'vector': lambda v: sincos2d_table(jnp.array([[v['position']]]), v['width'])[0, 0],
    'detr.vector': (detr, {'atol': 1e-5}),
}


def test_norms_of_a_grid_with_a_class_token():
    code = np.asarray(sincos2d_table(jnp.asarray(grid(3, 5)), 16))[0]
    np.testing.assert_array_equal(code[0], 0)
    np.testing.assert_allclose((code[1:] ** 2).sum(-1), 8, rtol=1e-5)
    assert (np.sort(code[1]) == np.repeat([0.0, 1.0], 8)).all()
    assert len(np.unique(code.round(5), axis=0)) == 16
    np.testing.assert_allclose(code[1 + 5 * 2 + 3, :8], code[1 + 5 * 2, :8])
    # Swapped rows and columns swap the halves.
    swapped = sincos2d_table(jnp.asarray(grid(3, 5)[..., ::-1].copy()), 16)[0]
    np.testing.assert_array_equal(swapped, np.roll(code, 8, axis=-1))


def test_detr_normalises_any_size():
    part = pj.make('sincos2d(style="detr")')
    of = lambda part, *size: table(part, pj.Tokens.of(positions=grid(*size)), 16)[0]
    small, large = of(part, 2, 3), of(part, 4, 9)
    np.testing.assert_array_equal(small[0], 0)
    # The last cell of every grid is one whole turn, and cell (0, 0) of 2 x 3 is (1, 2) of 4 x 9.
    np.testing.assert_allclose(small[-1], large[-1], atol=1e-5)
    np.testing.assert_allclose(small[1], large[1 + 9 + 2], atol=1e-5)
    given = pj.make('sincos2d(style="detr", rows=4, columns=9)')
    np.testing.assert_allclose(of(given, 4, 9), large, atol=1e-6)
    assert not given.traits and part.traits == {'moves_positions'}


def test_padding_and_packed_documents():
    part = pj.make('sincos2d(style="detr")')
    pos = np.concatenate([grid(2, 3), grid(4, 2), grid(9, 9)[:, :3]], axis=1)
    segment = np.repeat([0, 1, 2], [7, 9, 3])[None]
    tok = pj.Tokens.of(positions=pos, segment=segment, valid=segment < 2)
    out = np.asarray(jax.jit(type(part).embed)(part, jnp.zeros((1, 19, 8)), tok))[0]
    alone = lambda size: table(part, pj.Tokens.of(positions=grid(*size)), 8)[0]
    np.testing.assert_allclose(out[:7], alone((2, 3)), atol=1e-6)
    np.testing.assert_allclose(out[7:16], alone((4, 2)), atol=1e-6)
    np.testing.assert_array_equal(out[16:], 0)


GRID = pj.Tokens.of(positions=grid(2, 3))


def table_of(arguments, tok=GRID, width=8):
    return lambda: pj.make(f'sincos2d({arguments})').table(tok, width)


test_wrong_positions = refused() | {
    'sincos2d: column 2 is not in 0 .. 1': table_of('style="detr", rows=2, columns=2'),
    'multiple of 4, got 6; the nearest is 8': table_of('', width=6),
    r'positions \[B, L, 2\]': table_of('', pj.Tokens.of(length=3)),
    'integer': table_of('style="detr"', pj.Tokens.of(positions=grid(2, 3) / 2)),
}


def test_a_size_that_grows_with_the_tokens_is_not_cached():
    model = model_of('sincos2d(style="detr")', layers=1)
    with pytest.raises(ValueError, match='sincos2d gives every token another position'):
        init_cache(model, GRID)

"""Ids that keep images apart: by hand, for any sizes, both switches, and refused arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.image_shift import image_ids, image_shift_ids
from tests.golden_files import golden, golden_suite
from tests.refusals import refused

GOLDEN = golden('image_shift')['values']
SIZES = tuple(map(tuple, GOLDEN['sizes']))


def make(arguments='', sizes=SIZES, rest='', width=8):
    return pj.make(f'image_shift(sizes={sizes}{arguments}){rest}', model_dim=width)


def tokens(ids, **known):
    return pj.Tokens.of(positions=np.asarray(ids)[None], **known)


test_golden = golden_suite('image_shift') | {
    'ids': lambda: image_shift_ids(jnp.asarray(image_ids(SIZES)), SIZES)
}


def placed(ids, sizes=SIZES):
    return make(sizes=sizes).place(tokens(ids)).pos[0]


@pytest.mark.parametrize('sizes', [((3, 4),), ((1, 1), (1, 1)), ((5, 2), (1, 7), (3, 3), (2, 2))])
def test_no_two_tokens_share_an_id(sizes):
    ids = np.asarray(image_shift_ids(jnp.asarray(image_ids(sizes)), sizes))
    assert len(np.unique(ids, axis=0)) == sum(h * w for h, w in sizes) == len(ids)
    for axis in range(2):  # not even a row or a column
        images = [set(ids[image_ids(sizes)[:, 0] == k, axis]) for k in range(len(sizes))]
        assert sum(map(len, images)) == len(set().union(*images))


def test_one_image_is_the_plain_grid():
    ids = image_ids(((3, 4),))
    np.testing.assert_array_equal(placed(ids, ((3, 4),)), ids[:, 1:])


def test_permuted_images_have_permuted_ids():
    ids = image_ids(SIZES)
    for order in (np.arange(len(ids)), np.random.default_rng(0).permutation(len(ids))):
        np.testing.assert_array_equal(placed(ids[order]), np.array(GOLDEN['ids'])[order])


@pytest.mark.full_but_one
@pytest.mark.parametrize('shift', [True, False])
@pytest.mark.parametrize('index', [True, False])
def test_either_switch_keeps_images_apart(shift, index):
    """With neither, the same patch at the same place of two images has the same vector."""
    sizes = ((2, 2), (2, 2))
    encoding = make(f', shift={shift}, index={index}', sizes, ' | sinusoidal()')
    first = encoding.parts[0]
    assert first.opens('embed') == index
    if index:
        assert not first.vectors[...].any()
        first.vectors[...] = jnp.arange(16.0).reshape(2, 8)
    tok = encoding.place(tokens(image_ids(sizes)))
    x = np.asarray(encoding.embed(jnp.ones((1, 8, 8)), tok))[0]
    assert (np.abs(x[:4] - x[4:]).max(-1) > 0.1).all() == (shift or index)
    assert (x[:4] == x[4:]).all() == (not (shift or index))
    if not shift:
        np.testing.assert_array_equal(tok.pos[0, 4:], tok.pos[0, :4])


@pytest.mark.full
def test_padding_and_text_stay():
    encoding = make()
    text = pj.Tokens.of(length=3)
    assert encoding.place(text).pos is text.pos
    x = jnp.ones((1, 3, 8))
    np.testing.assert_array_equal(encoding.embed(x, encoding.place(text)), x)
    encoding.vectors[...] = jnp.ones((3, 8))
    tok = tokens([[0, 0, 0], [1, 0, 1], [9, 9, 9]], valid=[[True, True, False]])
    out = encoding.embed(x, encoding.place(tok))
    assert out[0, :, 0].tolist() == [2, 2, 1]


@pytest.mark.full
def test_traced_images_that_do_not_exist_are_noticed():
    place = lambda pos: make().place(pj.Tokens.of(positions=pos)).pos
    found = jax.jit(place)(jnp.array([[[7, 0, 0], [0, 0, 0]]]))
    assert found[0, 0, 0] < -(2**30) and found[0, 1].tolist() == [0, 0]


def at(*ids):
    return lambda: make().place(tokens(ids))


test_wrong_calls = refused() | {
    r'image 3 does not exist; sizes are given for 0 \.\. 2': at([3, 0, 0]),
    'image -1 does not exist': at([-1, 0, 0]),
    'a row lies 1 beyond its image': at([0, 1, 2], [1, 1, 0]),
    'a column lies 2 beyond its image': at([0, 0, 4]),
    'a row is -2': at([0, -2, 0]),
    r'integers \[B, L, 3\], image, row and column, got int32 \(1, 1, 2\)': at([0, 0]),
    'got float32': at([0.0, 0.5, 1.0]),
}

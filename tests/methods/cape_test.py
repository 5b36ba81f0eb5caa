"""CAPE: the rule by hand, the range and the owner of each draw, and the mean; images likewise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.cape import cape2d_coordinates, cape2d_table, cape_augmented, cape_centred
from posenc_jax.methods.sinusoidal import sinusoidal_table
from tests.golden_files import golden_suite
from tests.refusals import refused

SPEECH = 'cape(step=0.03, centre=True, shift=60.0, stretch=1.1, scale=30.0)'


def place(spec, tok, key=None):
    key = None if key is None else jax.random.key(key)
    return np.asarray(pj.make(spec).place(tok, key=key).pos)


def vector(case):
    pos = place('cape()', pj.Tokens.of(positions=[[case['position']]]))
    return sinusoidal_table(jnp.asarray(pos), 4)[0, 0]


def by_hand(case):
    arrays = (case['positions'], [case['shift']], case['jitter'], [np.log(case['stretch'])])
    return cape_augmented(*(jnp.array(a, jnp.float32)[None] for a in arrays))[0]


def middle(case):
    tok = pj.Tokens.of(valid=[case['valid']])
    return cape_centred(jnp.array([case['positions']]), tok)[0]


test_golden = golden_suite(
    'cape',
    {
        'features.vector': vector,
        'first.vector': vector,
        'augmented.result': by_hand,
        'centred.result': middle,
        'speech.positions': lambda: place(SPEECH, pj.Tokens.of(length=5))[0],
    },
    atol=1e-6,
)

LENGTH, COUNT = 6, 400
ROWS = pj.Tokens.of(valid=np.ones((COUNT, LENGTH), bool))
ONLY = functools.partial('cape(shift={0}, jitter={1}, stretch={2})'.format)


def test_without_draws_positions_are_unchanged():
    np.testing.assert_array_equal(place(ONLY(0.0, 0.0, 1.0), ROWS, 0)[3], np.arange(LENGTH))
    np.testing.assert_array_equal(place('cape()', ROWS)[0], np.arange(LENGTH))


def test_the_shift_is_that_of_a_row():
    shift = place(ONLY(5.0, 0.0, 1.0), ROWS, 0) - np.arange(LENGTH)
    assert np.ptp(shift, axis=1).max() < 1e-5
    assert -5 <= shift.min() < -4.5 and 4.5 < shift.max() <= 5 and abs(shift.mean()) < 0.6


def test_the_jitter_is_that_of_a_token_and_keeps_the_order():
    pos = place('cape(step=0.5, shift=0.0, stretch=1.0)', ROWS, 0)
    jitter = (pos / 0.5 - np.arange(LENGTH)).ravel()
    assert -0.5 <= jitter.min() < -0.49 and 0.49 < jitter.max() <= 0.5 and abs(jitter.mean()) < 0.05
    assert (np.diff(pos, axis=1) > 0).all()
    assert (np.diff(place(ONLY(0.0, 2.0, 1.0), ROWS, 0), axis=1) < 0).any()


def test_the_stretch_is_a_factor_of_a_row():
    factors = place(ONLY(0.0, 0.0, 2.0), ROWS, 0)[:, 1:] / np.arange(1, LENGTH)
    assert np.ptp(factors, axis=1).max() < 1e-5
    logs = np.log(factors[:, 0]) / np.log(2)
    assert -1 <= logs.min() < -0.95 and 0.95 < logs.max() <= 1 and abs(logs.mean()) < 0.12


def test_the_draws_of_text_are_those_of_the_paper():
    """A line through the positions of a row tells its factor and its shift, and what is left is the
    jitter.
    """
    index = np.arange(512)
    pos = place('cape()', pj.Tokens.of(valid=np.ones((COUNT, 512), bool)), 0).astype(float)
    factor, start = np.polyfit(index, pos.T, 1)
    shift, jitter = start / factor, (pos - start[:, None]) / factor[:, None] - index
    for found, largest, margin in ((np.log(factor), np.log(1.03), 5e-4), (shift, 5.0, 0.1)):
        for end in (-found.min(), found.max()):
            assert largest - 2 * margin < end < largest + margin
    assert jitter.std() * 3**0.5 == pytest.approx(0.5, abs=0.01)  # of a uniform distribution


def test_the_shift_is_stretched_too():
    """So a shift and a stretch together are no shift of the stretched positions."""
    both = place(ONLY(5.0, 0.0, 2.0), ROWS, 0)
    factor = np.diff(both, axis=1)[:, 0]
    shift = place(ONLY(5.0, 0.0, 1.0), ROWS, 0)[:, 0]
    np.testing.assert_allclose(both[:, 0], shift * factor, atol=1e-4)


def test_one_key_gives_one_draw():
    first, again, other = (place('cape()', ROWS, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32 and (first != other).any(1).all()


PACKED = np.array([[4] * 2 + [1] * 4] * COUNT)


def test_packed_documents_draw_apart():
    pos = place('cape(jitter=0.0)', pj.Tokens.of(segment=PACKED), 0)
    steps = np.diff(pos, axis=1)
    np.testing.assert_allclose(steps[:, 2:4], steps[:, 4:].repeat(2, 1), rtol=1e-5)
    assert np.abs(steps[:, 0] - steps[:, 2]).max() > 0.01  # two factors
    assert np.abs(pos[:, 0] - pos[:, 2]).min() > 0  # two shifts


@pytest.mark.parametrize('key', [None, 0])
def test_the_mean_is_over_the_real_tokens_of_a_document(key):
    spec = 'cape(centre=True, shift=0.0, jitter=0.0)'
    pos = place(spec, pj.Tokens.of(segment=PACKED[:2]), key)
    np.testing.assert_allclose(pos[:, :2].mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(pos[:, 2:].mean(1), 0, atol=1e-6)
    for valid in ([[False] * 2 + [True] * 4], [[True] * 4 + [False] * 2]):
        real = place(spec, pj.Tokens.of(valid=valid), key)[np.array(valid)]
        assert real.mean() == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(np.diff(real), np.diff(real)[0], rtol=1e-5)


test_golden_of_images = golden_suite(
    'cape2d',
    {
        'features.*.vector': (
            lambda case: cape2d_table(jnp.array(case['place'])[None, None], len(case['vector']))[
                0, 0
            ]
        ),
        'middle.coordinates': lambda case: cape2d_coordinates(
            jnp.array(case['cells'])[None], jnp.array(case['size'])[None, None]
        )[0],
    },
    atol=2e-6,
)

GRID = np.stack(np.mgrid[:3, :5], axis=-1).reshape(1, -1, 2)
IMAGES = pj.Tokens.of(positions=np.repeat(GRID, COUNT, axis=0))


def on_image(arguments, tok=IMAGES, key=0):
    """Coordinates (y, x) of patches, and how far they are from those of evaluation."""
    key = None if key is None else jax.random.key(key)
    found = pj.make(f'cape2d({arguments})').place(tok, key=key).feats['cape2d'][:, :, 0]
    plain = cape2d_coordinates(tok.pos, jnp.array([[[3, 5]]]))
    return np.asarray(found), np.asarray(found - plain)


def test_an_image_has_the_same_coordinates_at_every_size():
    found, change = on_image('', key=None)
    assert not change.any() and np.abs(found).max() == 1
    finer = pj.make('cape2d()').place(pj.Tokens.on_grid(5, 9)).feats['cape2d']
    finer = np.asarray(finer).reshape(5, 9, 2)[::2, ::2]
    np.testing.assert_array_equal(finer.reshape(-1, 2), found[0])
    np.testing.assert_array_equal(on_image('shift=0.0, jitter=0.0, stretch=1.0')[1], 0)


def test_the_shift_is_that_of_an_image_and_of_an_axis():
    shift = on_image('jitter=0.0, stretch=1.0')[1]
    assert np.ptp(shift, axis=1).max() < 1e-6
    for axis in (0, 1):
        assert -0.5 <= shift[..., axis].min() < -0.45 and 0.45 < shift[..., axis].max() <= 0.5
    assert abs(np.corrcoef(shift[:, 0].T)[0, 1]) < 0.2


def test_a_shift_changes_no_product_of_two_patches():
    """`pe_i . pe_j` is a sum of cosines of the difference of their places."""
    plain, _ = on_image('', key=None)
    shifted, _ = on_image('jitter=0.0, stretch=1.0')
    gram = lambda coords: np.einsum('bid,bjd->bij', *[cape2d_table(coords, 16)] * 2)
    np.testing.assert_allclose(gram(shifted[:3]), gram(plain[:3]), atol=2e-4)


def test_the_jitter_is_that_of_a_patch_and_has_the_unit_of_its_cells():
    jitter = on_image('shift=0.0, stretch=1.0')[1] / [2 / 2, 2 / 4]
    for axis in (0, 1):
        own = jitter[..., axis]
        assert -0.5 <= own.min() < -0.49 and 0.49 < own.max() <= 0.5 and abs(own.mean()) < 0.05
    assert np.ptp(jitter, axis=1).min() > 0.1


def test_the_stretch_is_one_factor_of_both_axes():
    found, change = on_image('shift=0.0, jitter=0.0, stretch=2.0')
    found, change = (a[:, [0, 4, 14]].reshape(COUNT, -1) for a in (found, change))  # three corners
    factors = found / (found - change)
    assert np.ptp(factors, axis=1).max() < 1e-5
    logs = np.log(factors[:, 0]) / np.log(2)
    assert -1 <= logs.min() < -0.95 and 0.95 < logs.max() <= 1


def test_packed_images_draw_apart_and_a_class_token_gets_nothing():
    tok = pj.Tokens.of(
        positions=np.array([[[-1, -1], [0, 0], [1, 1], [0, 0], [1, 1]]]), segment=[[0, 0, 0, 1, 1]]
    )
    part = pj.make('cape2d(jitter=0.0, stretch=1.0)')
    added = part.embed(jnp.zeros((1, 5, 8)), part.place(tok, key=jax.random.key(0)))[0]
    assert not added[0].any() and np.abs(added[1:3] - added[3:]).max() > 0.01
    plain = part.embed(jnp.zeros((1, 5, 8)), part.place(tok))[0]
    np.testing.assert_array_equal(plain[1:3], plain[3:])


test_wrong_calls = refused(
    {
        r'cape2d needs integer positions \[B, L, 2\]': lambda: place(
            'cape2d()', pj.Tokens.of(length=3)
        ),
        'needs an even width, got 7; the nearest is 8': lambda: cape2d_table(
            jnp.zeros((1, 1, 2)), 7
        ),
        'call tok = encoding.place.tok. before': lambda: pj.make('cape2d()').embed(
            jnp.zeros((1, 15, 8)), pj.Tokens.on_grid(3, 5)
        ),
        'cape2d stretch must be at least 1, got 0.5': lambda: pj.make('cape2d(stretch=0.5)'),
        r'cape needs positions with one component \[B, L\], got \(1, 1, 2\)': (
            lambda: place('cape()', pj.Tokens.of(positions=[[[1, 2]]]))
        ),
        'learned_absolute needs integer positions': lambda: pj.make(
            'cape() | learned_absolute(max_len=9)', model_dim=4
        ).place(pj.Tokens.of(length=3)),
        'cape stretch must be at least 1, got 0.5': lambda: pj.make('cape(stretch=0.5)'),
        'cape step must be positive, got 0.0': lambda: pj.make('cape(step=0.0)'),
        'cape jitter must be at least 0, got -0.1': lambda: pj.make('cape(jitter=-0.1)'),
    }
)

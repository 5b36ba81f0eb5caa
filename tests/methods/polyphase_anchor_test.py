"""Polyphase anchoring: the anchor by hand, exact equivariance, models that do not see shifts, the
measure of it, and refused arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.analyse.shift_consistency import shift_consistency
from posenc_jax.methods.polyphase_anchor import polyphase_anchor_image, polyphase_anchor_place
from tests.golden_files import golden, golden_suite
from tests.methods.models import read
from tests.small_models import small_model

GOLDEN = golden('polyphase_anchor')
IMAGES = jax.random.normal(jax.random.key(0), (8, 8, 12, 3))
SHIFTS = ((1, 0), (5, 7), (3, 11))


def model_of(encoding, **fields):
    sizes = dict(vocab_size=0, train_len=64, layers=2, width=16, heads=2, kind='encoder')
    sizes |= dict(pool='mean', channels=3, patch=4, output_size=10, encoding=encoding)
    return small_model(**{**sizes, **fields})


def image(values):
    return jnp.array(values['image'], jnp.float32)[None, :, :, None]


def energies(values):
    """The energies of the phases, the largest of which is that of the anchor."""
    assert polyphase_anchor_place(image(values), 2).tolist() == [[1, 0]]
    phases = [image(values)[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
    return [jnp.square(phase).sum() for phase in phases]


def moved_and_anchored(values):
    """The anchored image, which is the same wherever the image begins if it is `invariant`."""
    fixed = polyphase_anchor_image(jnp.roll(image(values), (1, 3), (1, 2)), 2, invariant=True)
    np.testing.assert_array_equal(polyphase_anchor_image(image(values), 2), fixed)
    return fixed[0, :, :, 0]


test_golden = golden_suite('polyphase_anchor') | {
    'energies': energies,
    'anchored': moved_and_anchored,
}


def test_of_equal_phases_the_first_one_wins():
    assert polyphase_anchor_place(jnp.ones((1, 6, 6, 1)), 3).tolist() == [[0, 0]]
    image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 1].set(2.0).at[0, 1, 0].set(-2.0)
    assert polyphase_anchor_place(image, 2).tolist() == [[0, 1]]


def test_repeated_pixels_leave_the_anchor_open():
    """In an image that was enlarged by repeating its pixels, several phases are the same, so that a
    shift by one pixel may change which pixels share a patch.
    """
    image = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    moves = [
        np.asarray(
            polyphase_anchor_place(jnp.roll(image, by, 1), 4) - polyphase_anchor_place(image, 4)
        )[:, 0]
        % 4
        for by in (1, 2)
    ]
    assert set(moves[1].tolist()) == {2}  # by the pixels that the image had before
    assert len(set(moves[0].tolist())) > 1


def test_of_tokens_with_equal_norms_the_fourth_powers_decide():
    """As those behind the norm of a stage; the same token wins wherever the grid begins."""
    x = IMAGES / jnp.sqrt(jnp.square(IMAGES).mean(-1, keepdims=True))
    place = np.asarray(polyphase_anchor_place(x, 2, invariant=True))
    peaks = (x**4).sum(-1)
    for row, (a, b) in zip(np.asarray(peaks), place):
        energy = {(c, d): row[c::2, d::2].sum() for c in (0, 1) for d in (0, 1)}
        assert energy[a % 2, b % 2] == pytest.approx(max(energy.values()))
        assert row[a, b] == row[a % 2 :: 2, b % 2 :: 2].max()
    for low, shift in ((x, (3, 5)), (x.astype(jnp.bfloat16), (1, 2))):
        moved = polyphase_anchor_place(jnp.roll(low, shift, (1, 2)), 2, invariant=True)
        expected = (polyphase_anchor_place(low, 2, invariant=True) + np.array(shift)) % np.array(
            [8, 12]
        )
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize('stride', [2, 4])
def test_a_shift_moves_the_anchored_image_by_whole_patches_exactly(stride):
    """Bit for bit; and with `invariant` it does not move at all."""
    run, fixed = (
        jax.jit(
            lambda x, invariant=invariant: polyphase_anchor_image(x, stride, invariant=invariant)
        )
        for invariant in (False, True)
    )
    before, still = np.asarray(run(IMAGES)), np.asarray(fixed(IMAGES))
    patches = [(a, b) for a in range(0, 8, stride) for b in range(0, 12, stride)]
    for shift in SHIFTS:
        moved = jnp.roll(IMAGES, shift, (1, 2))
        after = np.asarray(run(moved))
        for old, new in zip(before, after):
            rolls = [np.roll(old, by, (0, 1)) for by in patches]
            assert sum(np.array_equal(roll, new) for roll in rolls) == 1
        np.testing.assert_array_equal(fixed(moved), still)
    assert any(not np.array_equal(a, b) for a, b in zip(before, np.asarray(IMAGES)))


def test_the_gradient_rolls_back():
    weight = jax.random.normal(jax.random.key(1), IMAGES.shape)
    gradient = jax.grad(lambda x: (polyphase_anchor_image(x, 4) * weight).sum())(IMAGES)
    for row, by, found in zip(weight, np.asarray(polyphase_anchor_place(IMAGES, 4)), gradient):
        np.testing.assert_array_equal(np.roll(row, by, (0, 1)), found)


def seen_shift(model, images, shift):
    return np.abs(read(model, jnp.roll(images, shift, (1, 2))) - read(model, images)).max()


@pytest.mark.full_where(condition=lambda fields: bool(fields))
@pytest.mark.parametrize(
    'fields',
    [
        {},
        {'pool': 'token'},
        {'mlp': 'mix_ffn', 'overlap': True},
        {'lower': ((2, 8, 1, 2, 'polyphase_anchor(depth=1)'),), 'patch': 2},
        {'pattern': ('polyphase_anchor()', 'spatial_reduction(rate=2, anchor=True)'), 'patch': 2},
    ],
    ids=str,
)
def test_a_model_does_not_see_shifts(fields):
    images = jax.random.normal(jax.random.key(2), (8, 16, 8, 3))
    model = model_of('polyphase_anchor()', **fields)
    for shift in ((3, 0), (14, 5)):
        assert seen_shift(model, images, shift) < 2e-5


@pytest.mark.full
def test_other_positions_and_patches_without_an_anchor_see_them():
    images = jax.random.normal(jax.random.key(2), (8, 16, 8, 3))
    reduced = 'polyphase_anchor()', 'spatial_reduction(rate=2)'
    for spec, fields in (
        ('learnable_fourier(components=2)', {}),
        ('peg()', {}),
        ("peg(padding='circular')", {}),
        ('polyphase_anchor()', dict(pattern=reduced, patch=2)),
    ):
        assert seen_shift(model_of(spec, **fields), images, (3, 5)) > 1e-3, spec


@pytest.mark.full
def test_the_share_of_the_paper():
    """Two layers, images of 32 x 32, patches of 4: only anchored models are always consistent."""
    images = jax.random.normal(jax.random.key(0), (200, 32, 32, 3))
    of = lambda spec: shift_consistency(model_of(spec), images, jax.random.key(1))
    found = of('polyphase_anchor()')
    assert found.share == GOLDEN['share'] and found.largest < 1e-5
    for spec in ('learnable_fourier(components=2)', 'peg(depth=0)'):
        found = of(spec)
        assert found.share < 0.9 and found.largest > 0.1, spec


def test_the_measure_counts_classes_and_logits():
    """A model whose class is the row of the brightest pixel changes it with almost every shift."""

    class Row(nnx.Module):
        def __call__(self, images):
            return images.max((2, 3))[:, None]

    images = jax.random.uniform(jax.random.key(3), (50, 16, 4, 1))
    found = shift_consistency(Row(), images, jax.random.key(4), shifts=16, batch=32)
    assert found.share < 0.25 and 0.1 < found.largest <= 1
    same = shift_consistency(Row(), images, jax.random.key(4), shifts=1, batch=32)
    assert same == (1.0, 0.0)
    for wrong in (images[0], images[:0]):
        with pytest.raises(ValueError, match=r'expected images \[M, rows, columns, C\]'):
            shift_consistency(Row(), wrong, jax.random.key(4))
    with pytest.raises(ValueError, match='at least 1, got 0 and 64'):
        shift_consistency(Row(), images, jax.random.key(4), shifts=0)

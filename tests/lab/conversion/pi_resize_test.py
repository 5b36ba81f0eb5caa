"""FlexiViT: matrices by hand and against torch, products that a resize keeps, the best weights
where it cannot keep them, and a model whose patches grow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.conversion.pi_resize import (
    SIDES,
    change_patch,
    change_table,
    drawn_patch,
    pi_resized,
    resize_matrix,
    resized_table,
)
from tests.golden_files import golden_suite
from tests.refusals import refused
from tests.small_models import small_model

OF_IMAGES = dict(
    vocab_size=0, train_len=9, layers=1, width=8, heads=2, kind='encoder', output_size=3,
    channels=2, patch=4, pool='mean', encoding='sincos2d()',
)  # fmt: skip


def resized(patches, size):
    """The bilinear resize of every patch by itself: pixel by pixel, float64."""
    old = patches.shape[-2:]
    out = np.zeros((*patches.shape[:-2], *size))
    for i, j in np.ndindex(*size):
        place = [np.clip((n + 0.5) * o / s - 0.5, 0, o - 1) for n, o, s in zip((i, j), old, size)]
        (r, c), (u, v) = np.floor(place).astype(int), np.modf(place)[0]
        down, right = min(r + 1, old[0] - 1), min(c + 1, old[1] - 1)
        out[..., i, j] = (1 - u) * ((1 - v) * patches[..., r, c] + v * patches[..., r, right]) + (
            u * ((1 - v) * patches[..., down, c] + v * patches[..., down, right])
        )
    return out


def inverse():
    """Of two cells to four: the result for each unit vector."""
    return pi_resized(jnp.eye(2).reshape(1, 2, 1, 2), (1, 4))[0, :, 0]


def correlation_of_8_and_5():
    """Of `<x, w>` and `<B x, w'>` for white x, over all w: both are linear in w and in x."""
    kernel = jnp.eye(64).reshape(8, 8, 1, 64)
    new = np.asarray(pi_resized(kernel, (5, 5)), np.float64).reshape(25, 64)
    both = resized(np.eye(64).reshape(64, 8, 8), (5, 5)).reshape(64, 25) @ new
    return np.trace(both) / (64 * (both**2).sum()) ** 0.5


test_golden = golden_suite(
    'pi_resize',
    {
        'matrix': lambda: resize_matrix(2, 4),
        'inverse': (inverse, {'atol': 1e-6}),
        'halved': (lambda: resize_matrix(4, 2, True), {'atol': 1e-8}),
        'correlation_of_8_and_5': (correlation_of_8_and_5, {'atol': 1e-5}),
    },
)


@pytest.mark.full_but_one
@pytest.mark.parametrize('new', [(12, 9), (16, 16), (8, 8), (8, 11)])
def test_products_are_kept_where_no_side_becomes_smaller(new):
    rng = np.random.default_rng(0)
    patches, kernel = rng.normal(size=(5, 8, 8)), rng.normal(size=(8, 8, 1, 3))
    matrices = (np.linalg.pinv(resize_matrix(8, side).T) for side in new)
    exact = np.einsum('ir,jc,rcad->ijad', *matrices, kernel)
    of = lambda x, w: np.einsum('brc,rcd->bd', x, w[:, :, 0])
    np.testing.assert_allclose(of(resized(patches, new), exact), of(patches, kernel), atol=1e-12)
    found = pi_resized(jnp.asarray(kernel, jnp.float32), new)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    if new == (8, 8):
        np.testing.assert_allclose(found, kernel, atol=1e-6)


def test_the_weights_are_the_best_ones():
    """The pseudo-inverse of the whole resize of a patch, which is of rows times of columns; and no
    other weights of smaller patches are nearer.
    """
    whole = resized(np.eye(12).reshape(12, 3, 4), (2, 3)).reshape(12, 6)  # B^T
    kernel = np.random.default_rng(1).normal(size=(3, 4, 1, 1))
    best = np.linalg.lstsq(whole, kernel.ravel(), rcond=None)[0]
    found = pi_resized(jnp.asarray(kernel, jnp.float32), (2, 3)).ravel()
    np.testing.assert_allclose(found, best, atol=1e-5)
    error = lambda w: ((whole @ w - kernel.ravel()) ** 2).sum()
    assert all(error(best) < error(best + 0.01 * step) for step in np.eye(6))


def test_a_bilinear_resize_of_the_weights_is_worse():
    """Its products are no multiple of the old ones: their correlation is .869, and they are 1.81
    times as large.
    """
    matrix = resize_matrix(8, 16)
    both = np.kron(matrix.T @ matrix, matrix.T @ matrix)
    correlation = np.trace(both) / (64 * (both**2).sum()) ** 0.5
    np.testing.assert_allclose([correlation, np.trace(both) / 64], [0.8689, 1.8057], atol=1e-4)


@pytest.mark.full
def test_the_resizes_of_torch():
    torch = pytest.importorskip('torch')
    table = np.random.default_rng(2).normal(size=(7, 7, 3)).astype(np.float32)
    image = torch.tensor(table.transpose(2, 0, 1)[None])
    for size in ((12, 5), (3, 14), (7, 7)):
        options = dict(size=size, mode='bilinear', align_corners=False)
        expected = torch.nn.functional.interpolate(image, antialias=True, **options)
        expected = expected[0].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(resized_table(jnp.asarray(table), size), expected, atol=1e-5)
        plain = torch.nn.functional.interpolate(image, **options)[0].numpy()
        matrices = (resize_matrix(7, side) for side in size)
        found = np.einsum('ir,jc,rcd->dij', *matrices, table)
        np.testing.assert_allclose(found, plain, atol=1e-5)
        np.testing.assert_allclose(resized(table.transpose(2, 0, 1), size), plain, atol=1e-5)


def test_the_table_is_resized_as_jax_does_it():
    table = jax.random.normal(jax.random.key(0), (7, 7, 2))
    for size in ((4, 10), (15, 7)):
        expected = jax.image.resize(table, (*size, 2), 'linear', precision='highest')
        np.testing.assert_allclose(resized_table(table, size), expected, atol=1e-5)


def test_a_model_reads_enlarged_patches_as_before():
    model = small_model(**OF_IMAGES)
    image = np.random.default_rng(3).normal(size=(2, 8, 12, 2))
    patches = image.reshape(2, 2, 4, 3, 4, 2).transpose(0, 1, 3, 5, 2, 4)
    larger = resized(patches, (8, 8)).transpose(0, 1, 4, 2, 5, 3).reshape(2, 16, 24, 2)
    logits = model(jnp.asarray(image, jnp.float32))
    changed = change_patch(model, 8)
    found = changed(jnp.asarray(larger, jnp.float32))
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert changed.cfg.patch == 8 and model.cfg.patch == 4 and model.input_layer.patch == 4
    # A bilinear resize of the weights gives other logits.
    matrix = jnp.asarray(resize_matrix(4, 8), jnp.float32)
    changed.input_layer.kernel[...] = jnp.einsum(
        'ir,jc,rcad->ijad', matrix, matrix, model.input_layer.kernel[...]
    )
    assert np.abs(changed(jnp.asarray(larger, jnp.float32)) - logits).max() > 1e-2


def test_gradients_reach_the_weights_that_are_kept():
    model = small_model(**{**OF_IMAGES, 'patch': 8})
    image = jnp.asarray(np.random.default_rng(4).normal(size=(1, 8, 8, 2)), jnp.float32)

    @nnx.jit
    @nnx.grad
    def slope(model):
        return (change_patch(model, 4)(image) ** 2).sum()

    found = slope(model)['input_layer']['kernel'][...]
    assert found.shape == (8, 8, 2, 8) and np.isfinite(found).all() and np.abs(found).max() > 1e-4


def test_the_table_of_a_model_follows_the_number_of_patches():
    """Smaller patches of the same image: the model has a table for them, and reads it as it is."""
    model = small_model(**{**OF_IMAGES, 'encoding': 'learned_grid(2, 3, extra=0) | nope()'})
    changed = change_table(change_patch(model, 2), (4, 6))
    assert changed.cfg.encoding == 'learned_grid(rows=4, columns=6, extra=0) | nope()'
    (old,), (new,) = (
        [part for part in m.encodings if hasattr(part, 'vectors')] for m in (model, changed)
    )
    assert old.vectors.shape == (2, 3, 8) and str(new).startswith('learned_grid(rows=4, columns=6')
    np.testing.assert_array_equal(new.vectors[...], resized_table(old.vectors[...], (4, 6)))
    image = jnp.asarray(np.random.default_rng(5).normal(size=(1, 8, 12, 2)), jnp.float32)
    other = change_patch(model, 2)  # resizes its table of 2 x 3 by cubic interpolation
    assert 1e-6 < np.abs(changed(image) - other(image)).max() < 0.5
    for name in ('kernel', 'bias'):
        one, same = (getattr(m.input_layer, name)[...] for m in (changed, other))
        np.testing.assert_array_equal(one, same)


def test_gradients_reach_the_table_that_is_kept():
    model = small_model(**{**OF_IMAGES, 'encoding': 'learned_grid(2, 3) | nope()'})
    image = jnp.asarray(np.random.default_rng(6).normal(size=(1, 16, 24, 2)), jnp.float32)

    @nnx.jit
    @nnx.grad
    def slope(model):
        return (change_table(model, (4, 6))(image) ** 2).sum()

    slopes = jax.tree.leaves_with_path(slope(model))
    (found,) = (a for path, a in slopes if 'vectors' in jax.tree_util.keystr(path))
    assert found.shape == (2, 3, 8) and np.isfinite(found).all() and np.abs(found).min() > 1e-6


def test_a_table_that_was_told_its_grid_is_told_the_new_one():
    model = small_model(**{**OF_IMAGES, 'encoding': 'learned_grid(2, 3, size=(2, 3)) | nope()'})
    changed = change_table(change_patch(model, 2), (4, 6))
    assert changed.cfg.encoding == 'learned_grid(rows=4, columns=6, size=(4, 6)) | nope()'
    table = next(part for part in changed.encodings if hasattr(part, 'vectors'))
    np.testing.assert_array_equal(
        table.table(pj.Tokens.on_grid(4, 6), 8)[0].reshape(4, 6, 8), table.vectors[...]
    )


def test_patches_are_drawn_with_equal_chances():
    rng = np.random.default_rng(0)
    drawn = [drawn_patch(rng) for _ in range(2000)]
    sides, counts = np.unique(drawn, return_counts=True)
    assert sides.tolist() == sorted(240 // n for n in SIDES) and counts.min() > 150


test_wrong_calls = refused(
    {
        'this model reads no images': lambda: change_patch(
            small_model(vocab_size=5, train_len=4, layers=1, width=8, heads=2, encoding='nope()'), 4
        ),
        'reads patches that overlap': lambda: change_patch(
            small_model(**OF_IMAGES, overlap=True), 8
        ),
        'the table of learned_grid, but the model has sincos2d': lambda: change_table(
            small_model(**OF_IMAGES), (4, 4)
        ),
        'patch must be an integer of at least 1, got 0': lambda: change_patch(
            small_model(**OF_IMAGES), 0
        ),
        'sizes must be integers of at least 1, got 4 and 0': lambda: resize_matrix(4, 0),
        '7 patches along a side do not divide 240': lambda: drawn_patch(
            np.random.default_rng(0), sides=(6, 7)
        ),
    }
)

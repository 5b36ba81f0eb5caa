"""Pictures as tasks of points: pixels and their averages, what lies outside, whole numbers and
their bits, files of the user, and refused input.
"""

import itertools
import sys

import numpy as np
import pytest

from posenc_jax.fields.bit_plane_inr import from_bits
from posenc_jax.lab.tasks import FieldTask
from posenc_jax.lab.tasks.field_task import Points
from posenc_jax.lab.tasks.pictures.bit_planes import BitPlanes
from posenc_jax.lab.tasks.pictures.picture import Picture, averaging
from posenc_jax.lab.tasks.pictures.sources import load_picture
from posenc_jax.protocol.errors import SpecError

RNG = np.random.default_rng


def square(task, length):
    """The targets of a picture as its pixels."""
    return task.points(length).targets.reshape(length, length, -1)


def test_coordinates_are_the_centres_of_pixels_rows_first():
    points = Picture('synthetic').points(4).coords
    np.testing.assert_allclose(points[:3], [[-0.75, -0.75], [-0.75, -0.25], [-0.75, 0.25]])
    np.testing.assert_allclose(points[-1], [0.75, 0.75])


def test_a_coarse_picture_is_the_mean_of_a_fine_one():
    task = Picture('synthetic')
    fine, coarse = square(task, 24), square(task, 12)
    np.testing.assert_allclose(fine.reshape(12, 2, 12, 2, 1).mean((1, 3)), coarse, atol=1e-6)
    whole = task.unit_values(512)
    np.testing.assert_allclose(whole, load_picture('synthetic'))
    # Pixels that the grid cuts count by their parts: 512 is no multiple of 3.
    np.testing.assert_allclose(averaging(np.linspace(0, 512, 4), 512).sum(1), 1)
    np.testing.assert_allclose(task.unit_values(3).mean(), whole.mean(), atol=1e-9)


def test_the_synthetic_picture_has_a_box_and_falling_power():
    image = load_picture('synthetic', 1)[..., 0]
    assert (image[200:250, 300:400] == 1).all() and image.min() >= 0
    assert np.abs(image - load_picture('synthetic')[..., 0]).max() > 0.1
    power = np.abs(np.fft.rfft2(image - image.mean())) ** 2
    assert power[1:5, 1:5].mean() > 100 * power[50:60, 50:60].mean()


def test_batches_are_points_of_the_grid_and_all_of_them_if_there_are_as_many():
    task = Picture('synthetic')
    points = task.points(8)
    some = task.sample(RNG(0), 20, 8)
    assert len(np.unique(some['coords'], axis=0)) == 20 and some['loss_mask'].shape == (20,)
    rows = [np.flatnonzero((points.coords == x).all(1)).item() for x in some['coords']]
    np.testing.assert_array_equal(some['targets'], points.targets[rows])
    every = task.sample(RNG(0), 64, 8)
    np.testing.assert_array_equal(every['coords'], points.coords)
    with pytest.raises(ValueError, match='train.batch is 65, .* 64 points; nearest: 64'):
        task.sample(RNG(0), 65, 8)


def test_outside_lies_around_what_training_sees():
    """With a quarter outside on each side the trained square is the middle half."""
    whole, task = Picture('synthetic'), Picture('synthetic', outside=0.25)
    found = task.evaluation_points(16)
    assert found.coords.shape == (32 * 32, 2) and np.abs(found.coords).max() == 1.9375
    assert found.parts[''].sum() == 16 * 16 and not (found.parts[''] & found.parts['outside']).any()
    np.testing.assert_allclose(found.targets[:, 0], square(whole, 32).ravel(), atol=1e-6)
    np.testing.assert_array_equal(found.targets[found.parts['']], task.points(16).targets)
    truth, fitted = task.images(16, found.targets)
    assert truth.shape == (32, 32, 1)
    np.testing.assert_allclose(truth, fitted)
    with pytest.raises(ValueError, match='only 256 pixels along a side that training sees'):
        task.width(257)


def test_whole_numbers_are_rounded():
    task = Picture('synthetic', bits=8)
    numbers = (task.points(8).targets + 1) / 2 * 255
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-4)
    np.testing.assert_array_equal(np.rint(numbers).reshape(8, 8, 1), task.whole_numbers(8, 8))


@pytest.mark.parametrize('bits', [8, 16])
def test_bit_planes_recompose_the_picture(bits):
    picture = Picture('synthetic')
    task = BitPlanes(picture, bits)
    points = task.points(6)
    assert (task.components, task.predicts, points.coords.shape) == (3, 'bits', (36 * bits, 3))
    np.testing.assert_allclose(points.coords[:bits, 2], np.linspace(-1, 1, bits), atol=1e-6)
    assert len(np.unique(points.coords[:bits, :2], axis=0)) == 1
    planes = points.targets.reshape(6, 6, bits, 1).astype(int)
    numbers = from_bits(np.moveaxis(planes, -2, -1))
    np.testing.assert_array_equal(numbers, picture.whole_numbers(6, bits))
    truth, fitted = task.images(6, 2 * points.targets - 1)
    np.testing.assert_array_equal(truth, fitted)
    np.testing.assert_allclose(truth, picture.unit_values(6), atol=0.51 / (2**bits - 1))


def test_bit_planes_on_a_grid_with_pixels_at_the_edges():
    """The released code has `linspace(-1, 1, n)` for rows, columns and bits, rows first."""
    picture = Picture('synthetic')
    points, centres = BitPlanes(picture, grid='ends').points(3), BitPlanes(picture).points(3)
    axes = [(-1.0, 0.0, 1.0)] * 2 + [[-1 + 2 * k / 7 for k in range(8)]]
    np.testing.assert_allclose(points.coords, list(itertools.product(*axes)), atol=1e-6)
    np.testing.assert_array_equal(points.targets, centres.targets)
    assert centres.coords.max(0).tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    with pytest.raises(SpecError, match="'end'.*did you mean 'ends'"):
        BitPlanes(picture, grid='end')


@pytest.mark.full
def test_photographs_and_digits():
    pytest.importorskip('sklearn')
    china = Picture('china')
    assert china.pixels.shape == (427, 427, 3) and 0 <= china.pixels.min() < china.pixels.max() <= 1
    gray = Picture('china', gray=True)
    np.testing.assert_allclose(
        gray.points(8).targets[:, 0], china.points(8).targets.mean(1), atol=1e-6
    )
    digits = Picture('digits', index=7)
    assert digits.pixels.shape == (8, 8, 1) and digits.pixels.max() <= 1
    with pytest.raises(ValueError, match='only 8 pixels along a side; a resolution of 16 has no'):
        digits.width(16)


def test_files_of_the_user(tmp_path):
    image = pytest.importorskip('PIL.Image')
    pixels = RNG(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    image.fromarray(pixels).save(tmp_path / 'a.png')
    np.testing.assert_allclose(Picture(f'image:{tmp_path}/a.png').pixels, pixels[1:5] / 255)
    deep = RNG(0).integers(0, 65536, (4, 4)).astype(np.uint16)
    image.fromarray(deep).save(tmp_path / 'deep.png')
    task = Picture(f'image:{tmp_path}/deep.png')
    np.testing.assert_array_equal(task.whole_numbers(4, 16)[..., 0], deep)
    image.fromarray(deep.astype(np.float32)).save(tmp_path / 'real.tif')
    with pytest.raises(ValueError, match='real.tif.: its pixels are no whole numbers; save it'):
        Picture(f'image:{tmp_path}/real.tif').width(2)
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(ValueError, match=r"text.png' is not an image file that Pillow can read"):
        Picture(f'image:{tmp_path}/text.png').width(2)
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'a.png').read_bytes()[:60])
    with pytest.raises(ValueError, match='is not an image file'):
        Picture(f'image:{tmp_path}/cut.png').width(2)
    (tmp_path / 'large.png').write_bytes(b'P6 13000 13000 255\n')
    said = r"large\.png': it has 13000 x 13000 = 169000000 pixels; at most 134217728 are read"
    with pytest.raises(ValueError, match=said):
        Picture(f'image:{tmp_path}/large.png').width(2)
    with pytest.raises(FileNotFoundError, match='b.png. does not exist'):
        Picture(f'image:{tmp_path}/b.png').width(2)
    with pytest.raises(FileNotFoundError, match='is a directory'):
        Picture(f'image:{tmp_path}').width(2)


@pytest.mark.parametrize('name, package', [('china', 'sklearn'), ('image:a.png', 'PIL')])
def test_missing_packages_are_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = r"^(scikit-learn|pillow) is not installed; pip install 'posenc_jax\[images\]'$"
    with pytest.raises(ModuleNotFoundError, match=said):
        load_picture(name)


def test_points_are_finite():
    coords = np.zeros((3, 2), np.float32)
    coords[1, 0] = np.nan
    with pytest.raises(ValueError, match=r'coords must be finite, got nan at \[1, 0\]'):
        Points(coords, np.zeros((3, 1), np.float32))
    assert issubclass(Picture, FieldTask) and Picture('synthetic').vocab_size == 0

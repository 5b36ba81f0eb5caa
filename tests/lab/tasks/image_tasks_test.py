"""Tasks on images: shapes, splits, what the classes mean, and files and sizes that are refused."""

import sys
import warnings

import numpy as np
import pytest

import posenc_jax.lab.tasks  # noqa: F401  (registers the tasks)
from posenc_jax.lab.tasks import picture_file
from posenc_jax.lab.tasks.class_task import split_numbers
from posenc_jax.lab.tasks.images import Blobs, Digits, Folder, Quadrant, Textures
from posenc_jax.protocol.errors import SpecError
from tests.lab.tasks.rows import make, sampled


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of pictures of many shapes: 'dark' and 'light'."""
    image = pytest.importorskip('PIL.Image')
    for name, value in (('dark', 40), ('light', 220)):
        (tmp_path / name).mkdir()
        for number in range(8):
            picture = image.new('RGB', (5 + number, 9), (value, value + number, 0))
            picture.save(tmp_path / name / f'{number}.{"png" if number % 2 else "BMP"}')
        (tmp_path / name / '.hidden').write_text('not read')
    return tmp_path


@pytest.mark.parametrize(
    'spec',
    ['blobs()', 'blobs(directions=8, larger="detail")', 'digits()', 'quadrant()', 'textures()'],
)
def test_images_are_standardised_and_every_class_occurs(spec):
    task, batch = make(spec), sampled(spec, 16, 64)
    assert set(batch['targets'][:, 0]) == set(range(task.output_size))
    assert abs(batch['image'].mean()) < 0.6 and 0.5 < batch['image'].std() < 2


def centre(image):
    """The place of the brightest pixel of smoothed images, from 0 to 1."""
    flat = image.reshape(len(image), -1).argmax(1)
    return np.stack(np.divmod(flat, image.shape[2]), 1) / (np.array(image.shape[1:]) - 1)


@pytest.mark.parametrize('aspect', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('larger', ['scene', 'detail'])
def test_the_class_of_a_blob_is_its_quarter(larger, aspect):
    image, classes = Quadrant(noise=0.0, larger=larger, aspect=aspect).images(rng(), 200, 24)
    assert image.shape == (200, 24, 24 * aspect, 1)
    row, column = (centre(image[..., 0]) > 0.5).T
    np.testing.assert_array_equal(2 * row + column, classes)


@pytest.mark.parametrize('directions', [4, 6])
def test_the_class_of_two_blobs_is_the_direction_from_dark_to_bright(directions):
    """An independent reading of the pictures; rows count downwards, so classes go clockwise."""
    image, classes = Blobs(directions=directions, noise=0.0, larger='detail').images(rng(), 200, 48)
    row, column = (centre(image[..., 0]) - centre(-image[..., 0])).T
    turn = np.arctan2(row, column) / (2 * np.pi) * directions
    np.testing.assert_array_equal(np.round(turn).astype(int) % directions, classes)
    length = np.hypot(row, column)
    assert length.min() > 0.25 and length.max() < 0.65
    image = Blobs(noise=0.0).images(rng(), 200, 48)[0]
    length = np.hypot(*(centre(image[..., 0]) - centre(-image[..., 0])).T) * 47
    assert length.min() > 3.8 and length.max() < 11


@pytest.mark.parametrize('aspect', [0.5, 2.5])
def test_two_blobs_lie_within_an_image_that_is_not_square(aspect):
    image, classes = Blobs(noise=0.0, aspect=aspect).images(rng(), 200, 32)
    assert image.shape == (200, 32, 32 * aspect, 1) and image.max((1, 2, 3)).min() > 3
    pixels = np.array(image.shape[1:3]) - 1
    row, column = ((centre(image[..., 0]) - centre(-image[..., 0])) * pixels).T
    turn = np.arctan2(row, column) / (2 * np.pi) * 4
    np.testing.assert_array_equal(np.round(turn).astype(int) % 4, classes)


def test_blobs_keep_their_size_or_the_scene():
    def width(larger, side):
        bright = Quadrant(noise=0.0, larger=larger).images(rng(), 50, side)[0] > 2
        return bright.sum(axis=(1, 2, 3)).mean() ** 0.5

    assert width('scene', 32) == pytest.approx(width('scene', 16), rel=0.1)
    assert width('detail', 32) == pytest.approx(2 * width('detail', 16), rel=0.1)


def test_the_power_of_a_texture_falls_by_its_class():
    image, classes = Textures(classes=3, steepest=2.0).images(rng(), 300, 32)
    np.testing.assert_allclose(image.std(axis=(1, 2, 3)), 1, atol=1e-6)
    power = np.abs(np.fft.rfft2(image[..., 0])) ** 2
    at = lambda f: power[:, 0, f]
    for label in range(3):
        own = classes == label
        slope = np.log2(at(4)[own].mean() / at(8)[own].mean())
        assert slope == pytest.approx(label, abs=0.5)


def test_splits_share_no_picture():
    parts = [split_numbers(100, split) for split in ('train', 'validation', 'test')]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert [len(part) for part in parts] == [72, 14, 14]
    said = 'at least three files of a class, one for each split of the data, got 2'
    with pytest.raises(ValueError, match=said):
        split_numbers(2, 'test')
    with pytest.raises(SpecError, match="split is 'tests'; did you mean 'test'"):
        split_numbers(9, 'tests')


def test_digits_are_those_of_the_other_library_enlarged():
    stored = pytest.importorskip('sklearn.datasets').load_digits()
    task, numbers = Digits(), np.array([3, 1000])
    image, classes = task.pictures(numbers, 24)
    assert image.shape == (2, 24, 24, 1) and classes.tolist() == stored.target[numbers].tolist()
    small = image[:, 1::3, 1::3, 0]
    np.testing.assert_allclose(np.corrcoef(small.ravel(), stored.images[numbers].ravel())[0, 1], 1)
    assert (image[:, :3, :3] == image[:, :1, :1]).all()
    every = np.concatenate([task.numbers(split) for split in ('train', 'validation', 'test')])
    assert sorted(every.tolist()) == list(range(len(stored.target)))
    whole = task.pictures(every, 8)[0]
    assert abs(whole.mean()) < 1e-3 and abs(whole.std() - 1) < 1e-3


@pytest.mark.parametrize('spec, module', [('digits()', 'sklearn.datasets'), ('folder', 'PIL')])
def test_a_library_that_is_missing_is_named(spec, module, monkeypatch, pictures):
    task = Folder(str(pictures)) if spec == 'folder' else make(spec)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"is not installed; pip install 'posenc_jax\[images\]'"):
        task.sample(rng(), 2, 8)


def test_a_folder_of_pictures(pictures):
    task = Folder(str(pictures))
    assert (task.output_size, task.channels) == (2, 3)
    assert task.decode(np.array([1, 0])) == 'light dark'
    batch = task.dataset(length=6, batch_size=16, seed=0)[0]
    assert batch['image'].shape == (16, 6, 6, 3)
    # A colour of 40 is (40 / 255 - 1 / 2) * 4.
    expected = (np.where(batch['targets'] == 1, 220, 40) / 255 - 0.5) * 4
    np.testing.assert_allclose(batch['image'][:, 3, 3, 0], expected[:, 0], atol=1e-6)
    grey = Folder(str(pictures), grey=True, aspect=1.5).sample(rng(), 3, 8)
    assert grey['image'].shape == (3, 8, 12, 1)
    split = lambda name: set(task.numbers(name).tolist())
    assert not split('train') & split('test') and len(split('train')) == 12


def test_folders_and_files_that_cannot_be_read_are_named(pictures):
    path = str(pictures)
    with pytest.raises(ValueError, match='at least two classes, got none'):
        Folder(str(pictures / 'dark'))
    (pictures / 'empty').mkdir()
    with pytest.raises(ValueError, match="empty' needs at least three pictures.* got 0"):
        Folder(path)
    for number in range(3):
        (pictures / 'empty' / f'{number}.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r"0\.png' cannot be read as a picture"):
        Folder(path).dataset(length=8, batch_size=2, seed=0)
    (pictures / 'empty' / 'notes.txt').write_text('words')
    said = r"notes\.txt' is no picture; expected a file that ends on"
    with pytest.raises(ValueError, match=said):
        Folder(path)


def test_pictures_that_are_too_large_are_refused_by_their_header(pictures, monkeypatch):
    file, task = pictures / 'dark' / '1.png', Folder(str(pictures))
    many = '13000 x 13000 = 169000000'
    for size, message in (('13000 13000', many), ('99999 99999', 'too many')):
        file.write_bytes(f'P6 {size} 255\n'.encode())
        said = rf"1\.png' cannot .* it has {message} pixels; at most 134217728 are read; save it"
        with warnings.catch_warnings(), pytest.raises(ValueError, match=said):
            warnings.simplefilter('error')
            task.check(8)
    monkeypatch.setattr(picture_file, 'MOST_BYTES', 10)
    with pytest.raises(ValueError, match=r'the file has \d+ bytes, at most 10 are read'):
        task.check(8)


def test_names_of_pictures_are_on_one_line(pictures):
    (pictures / 'dark' / '\n\x1b[31m.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r"dark/\\n\\x1b\[31m\.png' cannot be read") as found:
        Folder(str(pictures)).check(8)
    assert str(found.value).isprintable()


@pytest.mark.parametrize('grey', [True, False])
def test_grey_pictures_of_16_bits_keep_their_levels(pictures, grey):
    image = pytest.importorskip('PIL.Image')
    ramp = np.linspace(0, 65535, 8).round().astype(np.uint16)[None].repeat(8, axis=0)
    image.fromarray(ramp).save(pictures / 'dark' / '0.png')
    task = Folder(str(pictures), grey=grey)
    file = [file.name for file in task.files['dark']].index('0.png')
    found, _ = task.pictures(np.array([file]), 8)
    np.testing.assert_allclose(found[0, 0, :, 0] / 4 + 0.5, ramp[0] / 65535, atol=1 / 255)
    image.fromarray(np.float32(ramp)).save(pictures / 'dark' / '1.tif')
    with pytest.raises(ValueError, match='1.tif. cannot be read .* no whole numbers'):
        Folder(str(pictures)).check(8)

"""Clouds of points: shapes that lie on their surfaces, orders, padding, a user's own files, and
what is refused.
"""

import struct

import numpy as np
import pytest

from posenc_jax.base import memory
from posenc_jax.features.coordinates.point_orders import ORDERS, point_order
from posenc_jax.lab.tasks.class_task import split_numbers
from posenc_jax.lab.tasks.points import PointsFolder, Shapes
from posenc_jax.lab.tasks.points.shapes import SHAPES
from posenc_jax.lab.tasks.task import SPLITS
from tests.lab.tasks.rows import make, sampled

EXACT = Shapes(noise=0.0, stretch=0.0, shift=0.0)


def on_surface(points, kind):
    """Whether points lie on the surface of a kind, turned around z; solved without the sampler."""
    x, y, z = points.astype(np.float64).T
    r = np.hypot(x, y)
    near = lambda value: np.abs(value) < 1e-5
    if kind == 'sphere':
        return near(r**2 + z**2 - 1)
    if kind == 'torus':
        return near((r - 0.7) ** 2 + z**2 - 0.35**2)
    if kind == 'cylinder':
        return (near(r - 0.75) & (np.abs(z) < 0.75001)) | (near(np.abs(z) - 0.75) & (r < 0.75001))
    if kind == 'cone':
        side = near(r / 0.85 + (z - 1.17) / 1.5) & (z > -0.33001)
        return side | (near(z + 0.33) & (r < 0.85001))
    # A cube turned by some angle: each side face lies in a plane 0.75 from z.
    angles = np.linspace(0, np.pi / 2, 4_001)[:-1, None]
    u, v = np.cos(angles) * x + np.sin(angles) * y, np.cos(angles) * y - np.sin(angles) * x
    biggest = np.maximum(np.abs(u), np.abs(v)).max(axis=1)
    assert biggest.min() == pytest.approx(0.75, abs=1e-3)
    at = np.argmin(biggest)
    faces = np.abs(np.stack([u[at], v[at], z]))
    return np.abs(faces.max(axis=0) - 0.75) < 1e-3


def test_points_lie_on_the_surface_of_their_class():
    batch = EXACT.sample(np.random.default_rng(0), 30, 200)
    kinds = list(SHAPES)
    assert set(batch['targets'][:, 0]) == set(range(5)) and EXACT.output_size == 5
    for cloud, (label,) in zip(batch['vectors'], batch['targets']):
        assert on_surface(cloud, kinds[label]).all(), kinds[label]
    assert EXACT.decode(batch['targets'][0]) == kinds[batch['targets'][0, 0]]


def test_all_parts_of_a_surface_have_their_share():
    """The share of points beyond a height equals that of the area, within five standard errors."""
    count, rng = 40_000, np.random.default_rng(1)
    cone_side, cone_base = np.hypot(0.85, 1.5) * 0.85, 0.85**2
    shares = {
        'sphere': (0.5, 0.25),
        'cube': (0.749999, 1 / 6),
        'cylinder': (0.749999, 1 / 6),
        'cone': (1.17 - 0.75, cone_side / 4 / (cone_side + cone_base)),  # half of its height
    }
    for name, (height, share) in shares.items():
        found = (SHAPES[name](rng, count)[:, 2] >= height).mean()
        assert abs(found - share) < 5 * (share * (1 - share) / count) ** 0.5, name
    outer = (np.hypot(*SHAPES['torus'](rng, count)[:, :2].T) > 0.7).mean()
    share = 0.5 + 0.35 / (np.pi * 0.7)
    assert abs(outer - share) < 5 * (share * (1 - share) / count) ** 0.5


def test_padding_is_zero_and_one_length_has_none():
    assert 'valid' not in sampled('shapes()', 40, 6)
    batch = sampled('shapes()', (5, 40), 6)
    np.testing.assert_array_equal(batch['vectors'], batch['positions'])
    counts = batch['valid'].sum(axis=1)
    assert len(set(counts)) > 1 and counts.min() >= 5
    assert not batch['vectors'][~batch['valid']].any()
    assert batch['vectors'][batch['valid']].any(axis=1).all()


@pytest.mark.parametrize('order', ORDERS)
def test_orders_sort_the_same_points(order):
    ordered = Shapes(order=order, size=0.25).sample(np.random.default_rng(0), 3, (20, 30))
    plain = Shapes().sample(np.random.default_rng(0), 3, (20, 30))
    for cloud, other, real in zip(ordered['vectors'], plain['vectors'], plain['valid']):
        place = point_order(cloud[real], order, 0.25)
        np.testing.assert_array_equal(place, np.arange(real.sum()))
        np.testing.assert_array_equal(np.sort(cloud, axis=0), np.sort(other, axis=0))


def save(file, array):
    file.parent.mkdir(exist_ok=True, parents=True)
    np.save(file, array)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('tree', 'car'):
        for number in range(8):
            save(tmp_path / name / f'{number}.npy', number + rng.uniform(size=(30, 3)))
    return tmp_path


def test_own_files_are_classes_by_folder_and_split_like_pictures(folder):
    task = make(f"points_folder('{folder}', centred=False, order='xyz')")
    assert task.output_size == 2 and task.decode(np.array([0, 1])) == 'car tree'
    parts = {}
    for split in ('train', 'validation', 'test'):
        data = task.dataset(length=20, batch_size=40, seed=0, split=split)[0]
        parts[split] = set(np.floor(data['vectors'][..., 0]).astype(int).ravel())
        assert set(data['targets'].ravel()) == {0, 1}
    # The split that a folder of eight pictures a class has.
    assert parts == {split: set(split_numbers(8, split).tolist()) for split in parts}
    assert set.union(*parts.values()) == set(range(8)) and len(parts['train']) == 6
    whole = np.load(folder / 'car' / f'{parts["test"].pop()}.npy')
    test = task.dataset(length=30, batch_size=8, seed=1, split='test')[0]
    row = int(np.argmin(test['targets'][:, 0]))
    np.testing.assert_allclose(np.sort(test['vectors'][row], axis=0), np.sort(whole, axis=0))


def test_own_clouds_are_centred_to_radius_one(folder):
    batch = PointsFolder(str(folder)).sample(np.random.default_rng(0), 4, 30)
    np.testing.assert_allclose(batch['vectors'].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(batch['vectors'], axis=-1).max(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    'name, array, message',
    [
        ('car/3.npy', np.zeros((5, 2)), r"3\.npy'.*expected coordinates \[N, 3\].*\(5, 2\)"),
        ('car/3.npy', np.full((5, 3), np.nan), r"3\.npy'.*5 of 5 points are not finite"),
        ('car/3.npy', np.zeros((0, 3)), r"3\.npy'.*at least one point"),
        (
            'car/3.npy',
            np.full((30, 3), -1e39),
            r"3\.npy' has a coordinate of size 1e\+39.* 3\.40282e\+38",
        ),
        ('car/3.npy', np.zeros((9, 3)), r"3\.npy' has 9 points, fewer than the length 20.*most 9"),
        ('car/3.txt', None, r"3\.txt' is no cloud; expected a file that ends on \.npy"),
        ('car/5.npy', None, r"5\.npy' cannot be read as an array"),
    ],
)
def test_wrong_files_are_named(folder, name, array, message):
    (folder / name).write_bytes(b'no array')
    if array is not None:
        save(folder / name, array)
    with pytest.raises(ValueError, match=message):
        PointsFolder(str(folder)).dataset(length=20, batch_size=2, seed=0)


def npy(header: bytes, numbers: int = 0) -> bytes:
    """A file of NumPy with any header, of format 2.0, and some float64 behind it."""
    return b'\x93NUMPY\x02\x00' + struct.pack('<I', len(header)) + header + bytes(8 * numbers)


def described(shape: str, kind: str = '<f8') -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()


@pytest.mark.parametrize(
    'content, message',
    [
        (npy(described('(1000000000000, 3)')), 'says .* takes 24000000000000 bytes, .* has 0 beh'),
        (npy(described('(20, 3)'), 59), r'says \(20, 3\), .* 480 bytes, and the file has 472'),
        (npy(b'(' * 5000), 'its header cannot be read: .*; expected a file of numpy.save'),
        (npy(described('(20, 3)') + b' ' * 60_000, 60), r'length \(60\d+\).* at most 10000 bytes'),
        (npy(described('(-1, 3)')), r'expected coordinates \[N, 3\], got an array \(-1, 3\)'),
        (npy(described('(True, 3)'), 3), r'expected coordinates \[N, 3\], got an array \(True, 3'),
        (npy(described('(20, 3)', '|V1000000000')), 'coordinates are real numbers, got .*V1000'),
        (npy(described('(20, 3)', '|O'), 60), 'coordinates are real numbers, got .*O'),
        (b'PK\x03\x04' + bytes(100), 'its header cannot be read: ValueError: the magic string'),
        (b'\x93NUMPY\x09\x00', r'format version \(9, 0\), expected \(1, 0\) or \(2, 0\)'),
    ],
    ids=range(10),
)
def test_headers_are_refused_before_their_arrays_are_made(folder, monkeypatch, content, message):
    (folder / 'tree' / '7.npy').write_bytes(content)
    monkeypatch.setattr(np, 'load', lambda *_, **__: pytest.fail('an array was read'))
    with pytest.raises(ValueError, match=rf"tree/7\.npy' .*{message}") as found:
        for split in SPLITS:
            PointsFolder(str(folder), part=split).stored  # noqa: B018
    assert str(found.value).isprintable()


def test_clouds_that_are_too_large_together_are_refused_before_they_are_read(folder, monkeypatch):
    task = PointsFolder(str(folder))
    # 12 files of 30 points in training, and two copies of one, of 24 bytes a point.
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * 24 * (12 + 2) * 30)
    assert len(task.stored) == 12
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * 24 * (12 + 2) * 30 - 2)
    monkeypatch.setattr(np, 'load', lambda *_, **__: pytest.fail('an array was read'))
    said = 'the 360 points of 12 files in .* 9.84 KiB of memory; .* 9.84 KiB on .*; give fewer'
    with pytest.raises(ValueError, match=said):
        PointsFolder(str(folder)).sample(np.random.default_rng(0), 2, 20)


def test_names_of_files_are_on_one_line(folder):
    (folder / 'tree' / '7\n\x1b[31m.npy').write_bytes(b'')
    with pytest.raises(ValueError, match=r'7\\n\\x1b\[31m\.npy') as found:
        for split in SPLITS:
            PointsFolder(str(folder), part=split).stored  # noqa: B018
    assert str(found.value).isprintable()


def test_what_is_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp('empty')
    with pytest.raises(ValueError, match=r'subfolder for each of at least two classes, got none'):
        PointsFolder(str(empty))
    for number in range(6):
        (folder / 'car' / f'{number}.npy').unlink()
    with pytest.raises(ValueError, match='needs at least three clouds, one for each split, got 2'):
        PointsFolder(str(folder))

"""Tasks on the globe: their places and classes, parts of the lattice, the map, refused input, and
whole runs with a map.
"""

import dataclasses

import numpy as np
import pytest

from posenc_jax.lab.evaluate import field_maps
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.runs.run import resolve
from posenc_jax.lab.tasks.field_task import FieldTask, Points
from posenc_jax.lab.tasks.globe import (
    Checkerboard,
    LandOrOcean,
    checkerboard,
    fibonacci_lattice,
    is_land,
    regions,
)
from posenc_jax.lab.train.loop import train
from posenc_jax.protocol import registry
from posenc_jax.protocol.errors import SpecError
from tests.lab.tasks.rows import make
from tests.lab.train import field_run_test
from tests.lab.train.loop_test import NAME

SMALL = Checkerboard(support=20, classes=4, samples=300)
LAND = LandOrOcean(degree=4, islands=4, samples=200)


def test_training_and_validation_have_places_of_two_seeds():
    train_set, held_out = SMALL.points(100), SMALL.for_evaluation().points(100)
    both = np.concatenate([train_set.coords, held_out.coords])
    assert len(np.unique(both, axis=0)) == 600 and SMALL.points(5000) is train_set
    for points in (train_set, held_out):
        expected = checkerboard(points.coords.astype(np.float64), 20, 4)
        np.testing.assert_array_equal(points.targets, expected)
    for split, points in (('train', train_set), ('validation', held_out)):
        batch = SMALL.dataset(length=100, batch_size=40, seed=3, split=split)[0]
        rows = [np.flatnonzero((points.coords == x).all(1)).item() for x in batch['coords']]
        np.testing.assert_array_equal(batch['targets'], points.targets[rows])
    assert (make('checkerboard()').samples, make('checkerboard()').output_size) == (10_000, 16)


def test_the_test_lattice_and_its_poles():
    points = SMALL.evaluation_points(20)
    np.testing.assert_allclose(points.coords[0], [-64.9224, -72.2472], atol=1e-4)
    assert points.targets.tolist() == (np.arange(-10, 10) % 4).tolist()
    # |2 i / 21| > sin 60 degrees for i = -10 and i = 10, which is not in the lattice
    assert np.flatnonzero(points.parts['poles']).tolist() == [0]
    np.testing.assert_array_equal(points.parts['below_60'], ~points.parts['poles'])
    assert points.parts[''].all()


def test_a_map_has_the_north_first_and_then_the_west():
    points, (rows, columns) = SMALL.map_points()
    grid = points.coords.reshape(rows, columns, 2)
    assert grid[0, 0].tolist() == [-179, 89] and grid[-1, -1].tolist() == [179, -89]
    np.testing.assert_array_equal(points.targets, checkerboard(points.coords * 1.0, 20, 4))


def test_land_is_measured_by_region():
    task = make('land(degree=4, islands=4, samples=200)')
    points, places = task.evaluation_points(600), fibonacci_lattice(600)
    np.testing.assert_array_equal(points.targets, is_land(LAND.land, places))
    region = regions(LAND.land, places, 3.0)
    for number, name in enumerate(('interior', 'coast', 'islands')):
        np.testing.assert_array_equal(points.parts[name], region == number)
        assert points.parts[name].any()
    assert (task.output_size, task.predicts, task.components) == (2, 'class', 2)
    assert dataclasses.replace(LAND, globe=1).land.threshold != LAND.land.threshold
    assert LAND.for_evaluation().land.threshold == LAND.land.threshold


def test_a_batch_has_at_most_all_places():
    with pytest.raises(ValueError, match='train.batch is 301, but .* 300 points'):
        SMALL.check_batch(301, 100)


def test_accuracy_by_latitude_counts_bands_of_equal_area():
    places = fibonacci_lattice(1200)
    edges, shares = field_maps.accuracy_by_latitude(places[:, 1], places[:, 1] > 30)
    np.testing.assert_allclose(np.diff(np.sin(np.radians(edges))), 1 / 6)
    np.testing.assert_array_equal(shares, [0] * 9 + [1] * 3)
    assert np.isnan(field_maps.accuracy_by_latitude(places[:2, 1], np.ones(2, bool))[1][-1])


@dataclasses.dataclass(frozen=True)
class Turned(FieldTask):
    """Places whose latitude comes first, or lies beyond the pole."""

    spec_kind = 'task'
    components, output_size, predicts = 2, 2, 'class'
    shift: float = 0.0

    def points(self, length):
        coords = np.stack([np.linspace(-90, 90, 32), np.linspace(-180, 180, 32)], -1)
        coords = coords[:, ::-1] + [0, self.shift] if self.shift else coords
        return Points(coords.astype(np.float32), np.zeros(32, np.int32))


def config(workdir, *fields):
    return field_run_test.config(workdir, 'train.batch=32', 'field=linear()', *fields)


TURNED = [('turned()', 'they look swapped'), ('turned(shift=1.0)', 'check their unit')]


@pytest.mark.parametrize('task, message', TURNED)
def test_wrong_degrees_are_refused_before_training(task, message, tmp_path, monkeypatch):
    entry = registry.Entry('turned', 'task', Turned, None)
    monkeypatch.setitem(registry._ENTRIES, ('task', 'turned'), entry)
    features = ('features=geo_wrap()', "features=geo_wrap() | fourier_features('nerf', bands=2)")
    for own in features[: 2 if 'shift' not in task else 1]:
        with pytest.raises(SpecError, match=rf'task is turned.*degrees.*got.*{message}'):
            resolve(config(tmp_path, f'task={task}', own))
    resolve(config(tmp_path, f'task={task}'))


@pytest.mark.parametrize(
    'task, parts',
    [
        ('checkerboard(support=20, classes=4, samples=300)', {'', '_poles', '_below_60'}),
        pytest.param(
            'land(degree=4, islands=4, samples=300)',
            {'', '_poles', '_below_60', '_interior', '_coast', '_islands'},
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_is_measured_by_parts_and_drawn(task, parts, tmp_path):
    length = ('train.length=600', 'eval.lengths=600')
    train(config(tmp_path, f'task={task}', 'features=geo_sh(degrees=4)', *length))
    (run,) = read(tmp_path / NAME / 'eval')
    found = {m.protocol: m for m in run.measurements}
    assert found.keys() == {f'accuracy{part}' for part in parts}
    whole, pole, rest = (found[f'accuracy{name}'] for name in ('', '_poles', '_below_60'))
    assert whole.tokens == 600 == pole.tokens + rest.tokens and whole.low < whole.value < whole.high
    right = pole.value * pole.tokens + rest.value * rest.tokens
    assert whole.value == pytest.approx(right / 600)
    assert (tmp_path / NAME / 'eval' / 'map.png').is_file()

"""The small pictures of encoders of graphs and of fields: what they show, and that there is one for
each method that spec strings build.
"""

from pathlib import Path

import numpy as np
import pytest

from posenc_jax.lab.catalogue.pictures import TOP, draw, field_fit, graph_features
from posenc_jax.language.catalog import PICTURED, picture_name, pictured
from posenc_jax.protocol.registry import entries, lookup

FOLDER = Path(__file__).parents[3] / 'docs' / 'catalog'


def test_every_method_of_the_kinds_has_its_picture():
    methods = [entry for kind in PICTURED for entry in entries(kind) if pictured(entry)]
    wanted = {picture_name(entry.kind, entry.key) for entry in methods}
    assert {path.name for path in FOLDER.glob('*.png')} == wanted
    assert {'graph_lap_pe.png', 'field_siren.png'} < wanted
    assert not pictured(lookup('rope_reading_order', ('graph',)))


def test_a_graph_shows_the_features_that_differ_among_its_nodes():
    """By hand: distances from the topmost node, and the chance to be back after two steps at the
    end of the tail and at its fork. That after one step is 0 at all nodes.
    """
    (distances,) = graph_features('graphormer_spatial()')
    assert TOP == 3 and distances.tolist() == [2, 1, 1, 0, 1, 2, 3, 4, 5, 5]
    back, *others = graph_features('rwse(steps=5)')
    np.testing.assert_allclose(back[[7, 8]], [5 / 6, 1 / 3], rtol=1e-6)
    assert len(others) == 2


@pytest.mark.full
def test_a_field_fits_the_wave():
    start, fitted, wave = field_fit('siren(width=32, layers=2)')
    error = lambda values: ((values - wave) ** 2).mean()
    assert error(fitted) < 0.1 * wave.var() < error(start)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'kind, key', [('graph', 'rrwp'), ('frequencies', 'yarn'), ('field', 'linear')]
)
def test_a_picture_is_a_png_of_the_size_of_all(kind, key, tmp_path):
    draw(lookup(key, (kind,)), tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    assert content[1:4] == b'PNG' and int.from_bytes(content[16:20], 'big') == 160

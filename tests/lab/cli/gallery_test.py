"""Tests of the gallery: the numbers that it draws, the files that it writes, and its errors."""

import numpy as np
import pytest

from posenc_jax.lab.cli.equal_tokens import Probe, by_distance, equal_token_logits
from posenc_jax.lab.cli.gallery import draw, main, thumbnail
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.errors import SpecError

PROBE = Probe(heads=4, head_dim=8, train_len=12)


def test_a_bias_is_shown_as_it_is_and_what_is_hidden_as_nan():
    logits = equal_token_logits(PROBE.make('alibi()'), 12, PROBE)
    distance = np.arange(12)[:, None] - np.arange(12)
    slopes = np.array([0.25, 0.0625, 0.015625, 0.00390625])
    np.testing.assert_allclose(
        logits, np.where(distance >= 0, -slopes[:, None, None] * distance, np.nan), atol=1e-5
    )
    window = by_distance(PROBE.make('window(size=5) | alibi()'), 12, PROBE)
    assert np.isfinite(window[:, :5]).all() and np.isnan(window[:, 5:]).all()


def test_a_rotation_is_shown_as_the_sum_of_its_cosines():
    planes = np.arange(40)[:, None] * rope_frequencies(8, 10000.0)
    expected = 2 * np.cos(planes).sum(1) / 8**0.5
    np.testing.assert_allclose(
        by_distance(PROBE.make('rope()'), 40, PROBE),
        np.tile(expected - expected[0], (4, 1)),
        atol=1e-5,
    )


def test_what_is_added_to_tokens_is_shown_by_its_inner_products():
    position = np.arange(12)[:, None] / 10000 ** (np.arange(0, 32, 2) / 32)
    table = np.stack([np.sin(position), np.cos(position)], -1).reshape(12, 4, 8)
    expected = np.einsum('nh,lnh->nl', table[11], table)[:, ::-1] / 8**0.5
    np.testing.assert_allclose(
        by_distance(PROBE.make('sinusoidal()'), 12, PROBE), expected - expected[:, :1], atol=1e-5
    )


def test_trees_are_shown_with_positions_of_their_own():
    encoding = PROBE.make('algebraic_tree(levels=4)')
    shown = by_distance(encoding, 12, PROBE)
    assert shown.shape == (4, 12) and np.abs(shown).max() > 0.1
    with pytest.raises(ValueError, match='more than levels=4 steps'):
        by_distance(encoding, 40, PROBE)


# A carry, earlier rows, several inputs, features chosen by distance, a term of the query.
DOORS = ('cope(npos=4)', 'path(rank=2)', 'conflator()', 'dca(encoding=rope(), chunk=4, local=2)')


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', [*DOORS, 'shaw()'])
def test_rows_are_those_of_the_matrix(spec):
    encoding = PROBE.make(spec)
    matrix = equal_token_logits(encoding, 12, PROBE)
    assert matrix.shape == (4, 12, 12) and np.isnan(matrix[0][np.triu_indices(12, 1)]).all()
    np.testing.assert_allclose(by_distance(encoding, 12, PROBE), matrix[:, -1, ::-1], atol=1e-5)


@pytest.mark.full
def test_pictures_are_written_also_where_no_position_is_left(tmp_path):
    for spec, stem in {
        'rope() | alibi()': 'rope_alibi',
        'learned_absolute(max_len=12)': 'learned_absolute_max_len=12',
    }.items():
        png, svg = draw(spec, tmp_path / 'new', PROBE, times=2)
        assert [png.name, svg.name] == [f'{stem}.png', f'{stem}.svg']
        assert png.read_bytes()[:4] == b'\x89PNG' and b'<svg' in svg.read_bytes()
    small = thumbnail(PROBE.make('learned_absolute(max_len=12)'), tmp_path / 'small.png', PROBE)
    assert small.read_bytes()[:4] == b'\x89PNG'


REFUSED = {  # arguments -> what the message says
    'alibi() alibii()': "did you mean 'alibi'",
    'alibi() --times=1': 'at least 2, got 1',
    'alibi() --heads=0': '--heads must be at least 1, got 0',
    'rope() --head_dim=7': '7',
    'alibi() --train_len=1000000000': (
        '8000000000 tokens, and all pairs of 1000000000, would take 27.8 EiB, the device has'
    ),
    'alibi() --heads=1000000000': 'heads must lie in 1 .. 1048576, got 1000000000',
    'learned_absolute(max_len=8)': 'position 63 is not in 0 .. 7',
    'alibi() alibi(_)': 'would both write alibi.*; draw them into two folders',
}


@pytest.mark.parametrize('arguments', REFUSED)
def test_wrong_input_is_told_before_anything_is_written(arguments, tmp_path, capsys):
    words = [word.replace('(_)', '( )') for word in arguments.split()]
    assert main([*words, f'--out={tmp_path / "out"}']) == 2
    assert REFUSED[arguments] in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_an_unknown_spec_is_an_error_of_the_language():
    with pytest.raises(SpecError, match='nearest|did you mean|valid'):
        draw('ropee()', 'nowhere')

"""Symmetric ALiBi in an encoder: the matrix, and what a reversed sequence gives."""

import numpy as np
import pytest

import posenc_jax as pj
from tests.golden_files import golden
from tests.methods.models import model_of, text
from tests.methods.pairs import bias_of

GOLDEN = golden('alibi_symmetric')


def test_both_sides_have_the_bias_of_the_distance():
    bias = bias_of(pj.make('alibi_symmetric()', heads=GOLDEN['heads']), 9)
    distance = GOLDEN['distance']
    for j in (4 - distance, 4 + distance):
        np.testing.assert_allclose(bias[:, 4, j], GOLDEN['bias'], rtol=1e-6)
    np.testing.assert_array_equal(bias, bias.swapaxes(1, 2))


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding, mirrored',
    [
        ('alibi_symmetric()', True),
        ("alibi(variant='offset')", False),
        ("alibi(variant='half')", False),
        ('rope()', False),
    ],
)
def test_an_encoder_reverses_its_output_with_the_sequence(encoding, mirrored):
    model, ids = model_of(encoding, heads=4, kind='encoder'), text(2, 12)
    difference = np.abs(model(ids)[:, ::-1] - model(ids[:, ::-1])).max()
    assert (difference < 1e-5) == mirrored and (difference > 1e-2) != mirrored, difference

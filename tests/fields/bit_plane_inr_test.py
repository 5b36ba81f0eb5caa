"""Bit planes: exact decomposition of all numbers, the order of bits, whole numbers from logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.fields import make_field
from posenc_jax.fields.bit_plane_inr import bit_coordinates, bits_of, from_bits
from tests.golden_files import golden

GOLDEN = golden('bit_plane_inr')['values']


def test_bits_by_hand():
    assert bits_of(np.array(GOLDEN['number']), 8).tolist() == GOLDEN['bits']


@pytest.mark.parametrize('bits', [8, 16])
def test_all_numbers_come_back(bits):
    numbers = np.arange(2**bits)
    planes = bits_of(numbers, bits)
    assert planes.shape == (2**bits, bits) and set(np.unique(planes)) == {0, 1}
    np.testing.assert_array_equal(from_bits(planes), numbers)


def test_whole_numbers_ask_for_every_bit():
    """A network whose logit is the coordinate of the bit: the upper half of the bits is set."""
    network = make_field('bit_plane_inr(linear())', features=3, outputs=2)
    network.inner.layer.weight[...] = jnp.zeros((3, 2)).at[2].set(jnp.array([1.0, -1.0]))
    network.inner.layer.bias[...] = jnp.zeros(2)
    found = network.whole_numbers(jnp.zeros((4, 2)), bits=8)
    np.testing.assert_array_equal(found, np.tile([0b11110000, 0b00001111], (4, 1)))
    np.testing.assert_allclose(bit_coordinates(8)[[0, -1]], [-1, 1])

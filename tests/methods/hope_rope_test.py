"""HoPE: how many planes rotate, p-RoPE of as many planes, and what is refused."""

import numpy as np
import pytest

from posenc_jax.methods.hope_rope import hope_rope_frequencies
from posenc_jax.methods.p_rope import p_rope_frequencies
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden_suite


def model(name):
    width, base, length = name.split(', ')
    return int(width), float(base), int(length)


def rotating(_, name):
    """The number of planes that rotate; they are the fastest ones and those of p-RoPE."""
    width, base, length = model(name)
    found = hope_rope_frequencies(width, base, length)
    count = int((found != 0).sum())
    np.testing.assert_array_equal(found, p_rope_frequencies(width, base, 2 * count / width))
    return count


test_golden = golden_suite('hope_rope', {'kept.*': rotating})


def test_a_plane_rotates_from_so_many_periods_on():
    """With base 16 and width 4 the second plane completes 1.99 periods of 8 pi in 50 tokens."""
    theta = rope_frequencies(4, 16.0)
    found = lambda periods: hope_rope_frequencies(4, 16.0, 50, periods=periods).tolist()
    second = 50 * theta[1] / (2 * np.pi)
    assert second == pytest.approx(50 / (8 * np.pi))
    assert found(second * (1 + 1e-12)) == [1.0, 0.0]
    assert found(second * (1 - 1e-12)) == [1.0, 0.25]


def test_a_long_training_is_rope_and_more_periods_keep_fewer_planes():
    np.testing.assert_array_equal(hope_rope_frequencies(8, 1e4, 10**5), rope_frequencies(8, 1e4))
    kept = [(hope_rope_frequencies(64, 1e4, 1024, periods=n) != 0).sum() for n in (0.5, 1, 2, 8)]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1]

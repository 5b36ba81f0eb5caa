"""The pattern that padding writes: by hand, limiting cases, strides, and what zeros do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.analyse.ppp_padding import (
    PADDINGS,
    Convolution,
    margin,
    padding_pattern,
    pattern_plot,
    run_stack,
)
from tests.golden_files import golden, golden_suite

draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
KERNELS = [Convolution(draw(n, 3, 3, 4, 4) / 6, draw(n + 9, 4), relu=False) for n in range(3)]


def of_a_constant():
    """What zeros take from a constant."""
    ones = [Convolution(jnp.ones((3, 3, 1, 1)))]
    return padding_pattern(jnp.ones((2, 6, 6, 1)), ones, 'zeros')


test_golden = golden_suite(
    'ppp_padding',
    {
        'lost': lambda: -of_a_constant().pattern[..., 0],
        'mae': lambda: of_a_constant().mae,
        'margin_of_three': lambda: margin(KERNELS),
    },
)


def test_a_pattern_without_variance_is_the_whole_difference():
    """All images are alike."""
    found, lost = of_a_constant(), golden('ppp_padding')['lost']
    np.testing.assert_array_equal(found.shown, lost)
    assert found.snr == pytest.approx(np.square(lost).mean() / 1e-8)
    np.testing.assert_allclose(found.by_distance, [np.mean([5, 3, 3] * 4), 0])


def test_mean_and_signal_are_those_of_the_definitions():
    images = draw(20, 5, 11, 12, 4)
    d = np.stack([
        np.asarray(run_stack(image[None, 3:-3, 3:-3], KERNELS, 'reflect'), np.float64)[0]
        - np.asarray(run_stack(image[None], KERNELS, 'none'))[0]
        for image in images
    ])  # fmt: skip
    found = padding_pattern(images, KERNELS, 'reflect')
    np.testing.assert_allclose(found.pattern, d.mean(0), atol=1e-5)
    assert found.mae == pytest.approx(np.abs(d).mean(), rel=1e-4)
    ratio = d.mean(0) ** 2 / (((d - d.mean(0)) ** 2).mean(0) + 1e-8)
    assert found.snr == pytest.approx(ratio.mean(), rel=1e-3)
    assert found.pattern.shape == (5, 6, 4)


@pytest.mark.parametrize('padding', PADDINGS)
def test_it_reaches_as_far_as_the_kernels(padding):
    """The output is exact three cells from the border, and anywhere with kernels of one pixel."""
    found = padding_pattern(draw(21, 4, 16, 16, 4), KERNELS, padding)
    assert found.shown[3:7, 3:7].max() < 1e-5 < found.shown[2, 2:8].min()
    points = [Convolution(draw(n, 1, 1, 4, 4)) for n in range(2)]
    assert margin(points) == 0
    assert padding_pattern(draw(22, 3, 5, 5, 4), points, padding).mae == 0


def test_a_stride_keeps_the_grids_together():
    stack = [Convolution(draw(3, 3, 3, 2, 4), stride=2), Convolution(draw(4, 5, 5, 4, 2))]
    assert margin(stack) == 1 + 2 * 2
    for size in (17, 16):
        found = padding_pattern(draw(23, 3, size + 10, size + 10, 2), stack, 'zeros')
        assert found.pattern.shape == (-(-size // 2), -(-size // 2), 2)
        assert found.shown[3, 3] < 1e-4 < found.shown[0, 0]


def test_zeros_alone_write_what_all_images_have_in_common():
    """On Gaussian images of mean 0.5 the error is of the same size under every scheme, and the
    signal is large for zeros alone. Constant images see zeros alone.
    """
    images = 0.5 + draw(24, 16, 22, 22, 4)
    noise = [Convolution(draw(n, 3, 3, 4, 4) / 6, relu=False) for n in range(3)]
    found = {padding: padding_pattern(images, noise, padding) for padding in PADDINGS}
    others = [found[padding] for padding in PADDINGS if padding != 'zeros']
    assert found['zeros'].snr > 2 * max(other.snr for other in others)
    for other in others:
        assert other.snr < 0.1 and 0.5 < other.mae / found['zeros'].mae < 2
    for padding in PADDINGS:
        same = padding_pattern(jnp.ones((2, 12, 12, 4)), noise, padding)
        assert (same.mae < 1e-6) == (padding != 'zeros')


@pytest.mark.full
def test_the_picture(tmp_path):
    images = draw(25, 3, 10, 10, 4)
    found = {padding: padding_pattern(images, KERNELS, padding) for padding in ('zeros', 'reflect')}
    assert pattern_plot(found, tmp_path / 'pattern.png').stat().st_size > 5000

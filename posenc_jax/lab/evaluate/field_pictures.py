"""Pictures of fitted pictures: the true one, the fitted one, the error, and the spectrum of both, a
row for each resolution.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from posenc_jax.lab.evaluate.series import RunResult

_TRUE, _FITTED = '#000000', '#D55E00'


def radial_power(image: Float[np.ndarray, 'H W C']) -> Float[np.ndarray, ' F']:
    """The mean power of the waves with 0, 1, 2, ... periods along a side, up to half its pixels; of
    the mean over the channels, under a Hann window.

    Example:
      >>> wave = np.cos(2 * np.pi * 5 * np.arange(32) / 32) * np.ones((32, 1))
      >>> int(radial_power(wave[..., None]).argmax())
      5
    """
    height, width, _ = image.shape
    gray = image.mean(-1) - image.mean()
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    power = np.abs(np.fft.fft2(gray * window)) ** 2 / window.mean() ** 2 / gray.size**2
    rows, columns = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
    radius = np.rint(np.hypot(rows[:, None], columns)).astype(int)
    total, count = (np.bincount(radius.ravel(), w) for w in (power.ravel(), None))
    return (total / np.maximum(count, 1))[: min(height, width) // 2 + 1]


def draw(run: RunResult) -> Any:
    """The figure of a run."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    fitted = [one for one in run.fitted if one.images is not None]
    figure = Figure(figsize=(12.5, 3.1 * len(fitted) + 0.5), layout='constrained')
    axes = figure.subplots(len(fitted), 4, squeeze=False)
    numbers = {(m.protocol, m.length): m.value for m in run.measurements}
    for row, one in zip(axes, fitted):
        truth, guess = one.images
        for axis, image, title in (
            (row[0], truth, f'true, {truth.shape[0]} x {truth.shape[1]}'),
            (row[1], guess, _title(numbers, one.length)),
        ):
            shown = image if image.shape[-1] == 3 else image.mean(-1)
            axis.imshow(np.clip(shown, 0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axis.set_title(title, fontsize=10)
            beyond = (truth.shape[0] - one.length) / 2  # pixels that training does not see
            if beyond:
                corner, side = (beyond - 0.5,) * 2, one.length
                axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=_FITTED))
        error = (guess - truth).mean(-1)
        most = max(float(np.abs(error).max()), 1e-6)
        drawn = row[2].imshow(error, cmap='RdBu', vmin=-most, vmax=most, interpolation='nearest')
        figure.colorbar(drawn, ax=row[2], fraction=0.046, pad=0.02)
        row[2].set_title('fitted - true', fontsize=10)
        # Beside what lies outside, the trained grid fills a part of the side.
        _draw_spectrum(row[3], truth, guess, run.train_length * truth.shape[0] / one.length)
        for axis in row[:3]:
            axis.set_axis_off()
    row[3].set_xlabel('periods along a side')
    return figure


def _title(numbers, length):
    shown = {
        'psnr': 'PSNR {:.1f} dB',
        'psnr_outside': 'outside {:.1f} dB',
        'bit_error_rate': 'wrong bits {:.2%}',
    }
    found = [text.format(numbers[k, length]) for k, text in shown.items() if (k, length) in numbers]
    return ', '.join(['fitted', *found])


def _draw_spectrum(axis, truth, guess, trained):
    for image, label, colour in ((truth, 'true', _TRUE), (guess, 'fitted', _FITTED)):
        power = radial_power(image)[1:]
        axis.plot(np.arange(1, len(power) + 1), np.maximum(power, 1e-20), color=colour, label=label)
    label = 'highest of the trained grid'
    axis.axvline(trained / 2, color='0.4', linestyle='--', linewidth=1, label=label)
    axis.set_xscale('log', base=2)
    axis.set_yscale('log')
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.set_title('spectrum', fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[['top', 'right']].set_visible(False)

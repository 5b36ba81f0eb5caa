"""The sources of pictures: photographs and digits of scikit-learn, noise with a box, and files."""

import pathlib

import numpy as np
from jaxtyping import Float

from posenc_jax.base import extras
from posenc_jax.base.programs import printable
from posenc_jax.lab.tasks.picture_file import deep_grey, open_picture
from posenc_jax.protocol.errors import SpecError, nearest, quoted

PHOTOGRAPHS = ('china', 'flower')
NAMES = (*PHOTOGRAPHS, 'digits', 'synthetic')
FILE = 'image:'
SIDE = 512  # pixels along an axis of the synthetic picture
DIGITS = 1797


def check_name(name: str, index: int) -> None:
    """Raises SpecError if there is no such picture."""
    if not name.startswith(FILE) and name not in NAMES:
        choices = (*NAMES, f'{FILE}PATH')
        raise SpecError(f'picture name is {quoted(name)}; {nearest(name, choices)}')
    if name == 'digits' and not 0 <= index < DIGITS:
        raise SpecError(f'picture index of digits must lie in 0 .. {DIGITS - 1}, got {index}')
    if name == 'synthetic' and index < 0:
        raise SpecError(f'picture index of synthetic is a seed of at least 0, got {index}')
    if name not in ('digits', 'synthetic') and index:
        raise SpecError(f'picture index chooses one of digits or synthetic, got {index}')


def load_picture(name: str, index: int = 0) -> Float[np.ndarray, 'H W C']:
    """A picture at its full resolution, float64 in [0, 1].

    Args:
      name: 'china' or 'flower' (photographs, three channels), 'digits' (8 x 8), 'synthetic' (noise
        of power 1 / f^2 with a bright box), or 'image:PATH'.
      index: which digit, or the seed of the noise.

    Raises:
      SpecError: an unknown name or index.
      FileNotFoundError: there is no such file.
      ValueError: a file that is not a picture, or too large for `open_picture`.
      ImportError: scikit-learn or Pillow is missing.
    """
    check_name(name, index)
    if name.startswith(FILE):
        return _of_file(pathlib.Path(name.removeprefix(FILE)).expanduser())
    if name == 'synthetic':
        return _synthetic(index)
    with extras.explained():
        import PIL  # noqa: F401, scikit-learn reads its photographs by Pillow
        from sklearn import datasets
    if name == 'digits':
        return datasets.load_digits().images[index][..., None] / 16
    return datasets.load_sample_image(f'{name}.jpg') / 255


def _synthetic(seed: int) -> Float[np.ndarray, 'H W C']:
    frequency = np.fft.fftfreq(SIDE, 1 / SIDE)
    radius = np.maximum(np.hypot(frequency[:, None], frequency), 1)
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(SIDE, SIDE)))
    image = np.fft.ifft2(noise / radius).real
    image = 0.1 + 0.7 * (image - image.min()) / (image.max() - image.min())
    low, high = round(0.3 * SIDE), round(0.55 * SIDE)
    image[low:high, high : round(0.8 * SIDE)] = 1.0
    return image[..., None]


def _of_file(path: pathlib.Path) -> Float[np.ndarray, 'H W C']:
    with extras.explained():
        import PIL  # noqa: F401
    if not path.is_file():
        found = 'is a directory' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(f'picture {quoted(str(path), 200)} {found}')
    try:
        with open_picture(path) as image:
            if (deep := deep_grey(image)) is not None:
                return deep[..., None]
            kept = image.convert('L' if image.mode in ('1', 'L', 'LA') else 'RGB')
            pixels = np.array(kept, np.float64)
    except ValueError as error:
        raise ValueError(f'picture {quoted(str(path), 200)}: {printable(error)}') from None
    except Exception as error:  # every decoder of Pillow has errors of its own
        raise ValueError(
            f'picture {quoted(str(path), 200)} is not an image file that Pillow can read: '
            f'{type(error).__name__}'
        ) from error
    pixels /= 255  # in place, as this array is the largest
    return pixels if pixels.ndim == 3 else pixels[..., None]

"""Training: optimizer, step, metrics and loop. An encoding can be used without this package."""

from posenc_jax.core import extras

extras.need('train')

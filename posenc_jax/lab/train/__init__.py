"""Training: optimizer, step, metrics and loop. An encoding can be used without this package."""

from posenc_jax.base import extras

extras.need('train')

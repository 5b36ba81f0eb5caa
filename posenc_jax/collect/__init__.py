"""Encodings that change how values are summed: they open the door `collect`."""

from posenc_jax.collect import urpe

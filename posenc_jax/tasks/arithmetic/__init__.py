"""Arithmetic on digit strings."""

from posenc_jax.tasks.arithmetic.addition import Addition as Addition

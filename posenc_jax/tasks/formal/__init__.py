"""Formal languages."""

from posenc_jax.tasks.formal.flip_flop import FlipFlop as FlipFlop

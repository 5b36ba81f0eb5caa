"""Rules for the frequencies of a rotary encoding: (rotary_dim, base, length) -> (inv_freq, temperature)."""

from posenc_jax.rotation.frequencies import dynamic_ntk, ntk_aware, pi, yarn
